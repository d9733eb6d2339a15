// Scheduler alone: ids and counts, no device. A "step" here is: schedule, then pretend that it ran, or that the one
// before it did.
#include "engine/scheduler.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <random>
#include <span>

#include "check.h"
#include "rig.h"

namespace rtp_llm {
namespace {

using testing::key_of;
using testing::random_tokens;

struct Fixture {
  explicit Fixture(int num_blocks, EngineConfig given = {}, bool forms_equal = true)
      : config(given),
        pool(num_blocks, given.block_tokens),
        slots(given.max_num_seqs),
        scheduler(config, pool, slots, forms_equal) {}

  Sequence& add(int prompt, int max_tokens = 50, Role role = Role::kAlone, int output = 0) {
    Sequence& sequence = make(prompt, max_tokens, role, output);
    scheduler.add(sequence);
    return sequence;
  }
  Sequence& add_of_priority(int32_t priority, int prompt, int max_tokens = 50) {
    Sequence& sequence = make(prompt, max_tokens, Role::kAlone, 0);
    sequence.spec.priority = priority;
    scheduler.add(sequence);
    return sequence;
  }
  Sequence& make(int prompt, int max_tokens, Role role, int output) {
    return make(random_tokens(prompt, static_cast<int>(sequences.size())), max_tokens, role, output);
  }
  Sequence& make(std::vector<int32_t> prompt, int max_tokens, Role role = Role::kAlone, int output = 0) {
    SequenceSpec spec{.key = key_of(sequences.size()),
                      .prompt = std::move(prompt),
                      .output = random_tokens(output, 1),
                      .sampling = {.max_tokens = max_tokens}};
    BlockHasher hasher("salt", config.block_tokens, false);
    sequences.push_back(std::make_unique<Sequence>(spec, role, hasher, config.max_model_len));
    return *sequences.back();
  }
  // A sequence whose prompt was received, and its first token, with blocks and a slot of its own.
  Sequence& join(int prompt, int max_tokens = 50) {
    REQUIRE(slots.grant(key_of(0).router_epoch));
    return join_granted(prompt, pool.grant(blocks_for(prompt, config.block_tokens)).value(), max_tokens);
  }
  // REQUIRES: its slot was granted.
  Sequence& join_granted(int prompt, std::vector<int32_t> blocks, int max_tokens = 50) {
    Sequence& sequence = make(prompt, max_tokens, Role::kAlone, 1);
    pool.granted_to_referenced(blocks);
    sequence.num_launched = sequence.num_computed = prompt;
    sequence.admitted_before = true;
    sequence.blocks = std::move(blocks);
    scheduler.join(sequence);
    return sequence;
  }
  template <class Condition>
  void step_until(Condition holds) {
    for (int i = 0; i < 200 && !holds(); ++i) step();
    REQUIRE(holds());
  }
  // Launches a step and publishes the one `steps_ahead` before it; whose last token was reached gets one more.
  const Schedule& step() {
    const Schedule& plan = scheduler.schedule(cost);
    for (const Chunk& chunk : plan.chunks) {
      CHECK(static_cast<int>(chunk.sequence->blocks.size()) * config.block_tokens >= chunk.first_token + chunk.rows);
      chunk.sequence->num_bound_blocks = static_cast<int>(chunk.sequence->blocks.size());
    }
    pool.step_launched(++launched);
    in_flight.push_back(plan.chunks);
    while (in_flight.size() > static_cast<size_t>(steps_ahead)) publish();
    pool.check_integrity();
    return plan;
  }
  void publish() {
    pool.step_ended(launched + 1 - in_flight.size());
    for (const Chunk& chunk : in_flight.front()) {
      Sequence& sequence = *chunk.sequence;
      if (scheduler.ended(chunk) && sequence.state == Sequence::State::kRunning) {
        CHECK_EQ(chunk.first_token + chunk.rows, sequence.num_computed);
        for (int& next = sequence.num_offered_blocks; next < sequence.num_computed / config.block_tokens; ++next)
          pool.insert(sequence.blocks[next], sequence.hasher.hashes()[next]);
      }
      if (!chunk.samples) continue;
      sequence.append(7);
      if (sequence.role == Role::kSender) scheduler.hold(sequence);
    }
    in_flight.pop_front();
  }

  EngineConfig config;
  BlockPool pool;
  SlotPool slots;
  Scheduler scheduler;
  StepCost cost;
  std::vector<std::unique_ptr<Sequence>> sequences;
  int steps_ahead = 0;
  uint64_t launched = 0;
  std::deque<std::vector<Chunk>> in_flight;
};

std::vector<int> rows_of(const Schedule& plan) {
  std::vector<int> rows;
  for (const Chunk& chunk : plan.chunks) rows.push_back(chunk.rows);
  return rows;
}

EngineConfig small() {
  return {.max_num_batched_tokens = 32, .max_num_seqs = 4, .max_model_len = 256, .block_tokens = 8};
}

TEST(prompts_are_cut_into_chunks_first_come_first_served) {
  Fixture f(100, small());
  f.add(50);
  f.add(20);
  CHECK_EQ(rows_of(f.step()), std::vector<int>({32}));
  CHECK_EQ(rows_of(f.step()), std::vector<int>({18, 8}));  // 14 are left, 8 reach a block border
  CHECK_EQ(rows_of(f.step()), std::vector<int>({1, 12}));  // a decode comes first
  CHECK_EQ(rows_of(f.step()), std::vector<int>({1, 1}));
}

TEST(while_others_decode_prefill_gets_the_time_that_is_left_but_never_nothing) {
  Fixture f(100, small());
  f.add(8);
  f.step();
  f.add(100);
  f.cost.observe(1, 0, 0.030);                             // a decode step takes 30 ms
  f.cost.observe(0, 100, 0.1);                             // a prefill row takes 1 ms: 20 fit into 50 ms
  CHECK_EQ(rows_of(f.step()), std::vector<int>({1, 16}));  // 20, cut at a block border
  f.cost.observe(0, 100, 1000);                            // much slower now
  CHECK_EQ(rows_of(f.step()), std::vector<int>({1, 16}));
}

TEST(decodes_all_go_even_beyond_max_num_batched_tokens_and_prefill_goes_on) {
  EngineConfig config = small();
  config.max_num_batched_tokens = 2;
  Fixture f(100, config);
  for (int i = 0; i < 3; ++i) f.add(1);
  f.step();
  f.step();
  f.add(10);
  CHECK_EQ(rows_of(f.step()), std::vector<int>({1, 1, 1, 2}));
  CHECK(f.config.max_step_rows() >= 5);
}

TEST(the_latest_arrival_is_preempted_and_comes_back_first) {
  Fixture f(6, small());
  Sequence& first = f.add(15);
  Sequence& second = f.add(15);
  f.step();
  Sequence& third = f.add(8);
  f.step();
  CHECK(third.state == Sequence::State::kWaiting);  // it would take what the running ones need next
  f.step_until([&] { return f.scheduler.num_preemptions() > 0; });
  CHECK_EQ(first.len(), 26);  // the fourth block was the seventh
  CHECK(second.state == Sequence::State::kWaiting);
  CHECK(second.blocks.empty());
  f.scheduler.finish(first);
  const Schedule& plan = f.step();
  REQUIRE(!plan.admitted.empty());
  CHECK(plan.admitted[0] == &second);
}

TEST(the_least_priority_value_is_admitted_first_of_equal_ones_the_earlier) {
  EngineConfig config = small();
  config.max_num_seqs = 1;
  Fixture f(100, config);
  std::vector<const Sequence*> expected(6);
  for (const auto& [place, priority] : {std::pair{3, 0}, {1, -5}, {5, 7}, {4, 0}, {2, -5}, {0, -6}})
    expected[place] = &f.add_of_priority(priority, 8, 1);
  std::vector<const Sequence*> admitted;
  for (size_t i = 0; i < expected.size(); ++i) {
    const Schedule& plan = f.step();
    REQUIRE(plan.admitted.size() == 1);
    admitted.push_back(plan.admitted[0]);
    f.scheduler.finish(*plan.admitted[0]);
  }
  CHECK(admitted == expected);
}

TEST(the_greatest_priority_value_is_preempted_first_and_waits_in_front_of_its_priority) {
  Fixture f(6, small());
  Sequence& yields = f.add_of_priority(3, 15);
  Sequence& stays = f.add_of_priority(0, 15);
  f.step();
  Sequence& same = f.add_of_priority(3, 8);
  f.step_until([&] { return f.scheduler.num_preemptions() > 0; });
  CHECK(yields.state == Sequence::State::kWaiting);  // it came first
  CHECK(stays.state == Sequence::State::kRunning);
  Sequence& urgent = f.add_of_priority(-1, 8);
  f.scheduler.finish(stays);
  const Schedule& plan = f.step();
  CHECK(plan.admitted == std::vector<Sequence*>({&urgent, &yields}));
  CHECK(same.state == Sequence::State::kWaiting);
}

TEST(demand_holds_the_blocks_of_a_preempted_sequence_behind_newcomers_of_a_lesser_priority_value) {
  Fixture f(5, small());
  Sequence& first = f.add(8, 200);
  Sequence& second = f.add(8, 200);
  f.step_until([&] { return f.scheduler.num_preemptions() == 1; });
  Sequence& urgent = f.add_of_priority(-1, 32);
  const int again = blocks_for(second.len(), f.config.block_tokens);
  CHECK_EQ(f.scheduler.demand().blocks, 4 + again);
  f.step();
  CHECK(urgent.state == Sequence::State::kWaiting);
  CHECK_EQ(f.scheduler.demand().blocks, 4 + 4 + again);  // it was refused
  f.scheduler.finish(second);
  CHECK_EQ(f.scheduler.demand().blocks, 4 + 4);
  f.scheduler.finish(first);
  f.step();
  CHECK(urgent.state == Sequence::State::kRunning);
  CHECK_EQ(f.scheduler.demand().sequences, 1);
}

TEST(who_is_admitted_before_the_first_of_another_priority_takes_its_claim_over) {
  EngineConfig config = small();
  config.max_num_seqs = 1;
  Fixture f(100, config);
  Sequence& running = f.add(8, 200);
  f.step();
  Sequence& first = f.add(8);
  f.step();
  CHECK(!f.slots.grant(1));
  Sequence& urgent = f.add_of_priority(-1, 8);
  f.step();
  f.scheduler.finish(urgent);
  CHECK_EQ(f.scheduler.demand().sequences, 1);  // nobody that waits has a claim now
  f.step();
  CHECK_EQ(f.scheduler.demand().sequences, 2);
  f.scheduler.finish(running);
  CHECK(!f.slots.grant(1));
  f.step();
  CHECK(first.state == Sequence::State::kRunning);
}

TEST(a_preempted_sequence_finds_its_own_blocks_again) {
  Fixture f(8, small());
  Sequence& first = f.add(24);
  Sequence& second = f.add(24);
  f.step_until([&] { return f.scheduler.num_preemptions() > 0; });
  CHECK(second.state == Sequence::State::kWaiting);
  f.scheduler.finish(first);
  CHECK_EQ(f.scheduler.num_hit_tokens(), 0);
  f.step();
  CHECK(second.state == Sequence::State::kRunning);
  CHECK_EQ(f.scheduler.num_hit_tokens(), 24);  // of its four blocks the last went to `first`
}

TEST(a_sender_owns_all_blocks_of_its_prompt_before_it_starts_and_is_never_preempted) {
  Fixture f(9, small());
  Sequence& alone = f.add(8);
  f.step();
  Sequence& sender = f.add(48, 50, Role::kSender);
  const Schedule& plan = f.step();
  REQUIRE(plan.admitted.size() == 1);
  CHECK(plan.admitted[0] == &sender);
  CHECK_EQ(sender.blocks.size(), 6);
  f.step_until([&] { return alone.state == Sequence::State::kWaiting; });  // three blocks aren't enough for ever
  CHECK_EQ(sender.blocks.size(), 6);
  CHECK(sender.num_output() > 0);
}

TEST(a_sender_that_does_not_fit_waits_without_a_block) {
  Fixture f(6, small());
  f.add(24);
  f.step();
  Sequence& sender = f.add(30, 50, Role::kSender);
  f.step();
  CHECK(sender.state == Sequence::State::kWaiting);
  CHECK_EQ(f.pool.counts().referenced, 4);
}

TEST(a_held_sender_frees_its_slot_but_not_its_blocks) {
  EngineConfig config = small();
  config.max_num_seqs = 1;
  Fixture f(20, config);
  Sequence& sender = f.add(16, 50, Role::kSender);
  f.step();
  f.scheduler.hold(sender);
  Sequence& next = f.add(8);
  f.step();
  CHECK(next.state == Sequence::State::kRunning);
  CHECK_EQ(sender.blocks.size(), 2);
  f.scheduler.finish(sender);
  f.scheduler.finish(next);
  CHECK_EQ(f.pool.counts().referenced, 0);
}

TEST(demand_is_what_running_sequences_may_still_take_up_to_four_blocks_each) {
  Fixture f(100, small());
  f.add(8, 9);    // 17 tokens, the last one's KV is never stored: two blocks, one is owned after the prompt
  f.add(8, 200);  // many
  f.step();
  const BlockDemand demand = f.scheduler.demand();
  CHECK_EQ(demand.sequences, 2);
  CHECK_EQ(demand.blocks, 1 + 4);
}

TEST(demand_holds_all_blocks_that_a_preempted_sequence_takes_back) {
  Fixture f(5, small());
  f.add(8, 200);
  const Sequence& second = f.add(8, 200);
  f.step_until([&] { return f.scheduler.num_preemptions() == 1; });
  REQUIRE(second.state == Sequence::State::kWaiting);
  f.add(8);  // never ran: it has no claim
  const BlockDemand demand = f.scheduler.demand();
  CHECK_EQ(demand.sequences, 2);
  CHECK_EQ(demand.blocks, 4 + blocks_for(second.len(), f.config.block_tokens));
}

TEST(demand_holds_all_blocks_of_the_first_in_the_queue_once_it_was_refused) {
  Fixture f(10, small());
  Sequence& running = f.add(40, 41);
  f.step_until([&] { return running.num_output() > 0; });
  Sequence& first = f.add(48);
  f.add(8);                                  // behind it: it has no claim
  CHECK_EQ(f.scheduler.demand().blocks, 4);  // what the running one may still take
  f.step();
  CHECK(first.state == Sequence::State::kWaiting);
  CHECK_EQ(f.scheduler.demand().blocks, 4 + 6);
  f.scheduler.finish(first);
  CHECK_EQ(f.scheduler.demand().blocks, 4);
}

TEST(a_waiting_request_gets_its_turn_beside_grants) {
  EngineConfig config = small();
  config.max_num_seqs = 16;  // blocks are scarce, slots aren't
  Fixture f(20, config);
  f.pool.set_demand({});
  std::vector<std::vector<int32_t>> grants;  // each is joined as soon as given, grows no more and ends a while later
  std::vector<Sequence*> joined;
  Sequence* waiting = nullptr;
  for (int round = 0; round < 300 && !(waiting && waiting->holds_slot && waiting->num_computed > 0); ++round) {
    if (f.slots.grant(1)) {
      if (auto blocks = f.pool.grant(4)) {
        joined.push_back(&f.join_granted(30, std::move(*blocks), 2));
        joined.back()->spec.key.router_epoch = 1;
      } else {
        f.slots.give_back(1);
      }
    }
    if (round == 5) waiting = &f.add(100);  // 13 blocks: they are never free at once beside four grants of 4
    if (round % 4 == 3 && !joined.empty()) {
      f.scheduler.finish(*joined.front());
      joined.erase(joined.begin());
    }
    f.step();
    f.pool.set_demand(f.scheduler.demand());
  }
  REQUIRE(waiting != nullptr);
  CHECK(waiting->num_computed > 0);
}

TEST(the_first_in_the_queue_takes_the_next_free_slot_before_any_grant) {
  Fixture f(100, small());
  for (int i = 0; i < 4; ++i) CHECK(f.slots.grant(1));
  Sequence& waiting = f.add(8);
  f.step();
  CHECK(waiting.state == Sequence::State::kWaiting);
  f.slots.give_back(1);
  CHECK(!f.slots.grant(1));
  f.step();
  CHECK(waiting.state == Sequence::State::kRunning);
  f.scheduler.finish(waiting);
  CHECK(f.slots.grant(1));
}

TEST(a_claim_to_a_slot_ends_with_who_made_it) {
  Fixture f(100, small());
  for (int i = 0; i < 4; ++i) CHECK(f.slots.grant(1));
  Sequence& waiting = f.add(8);
  f.step();
  f.scheduler.finish(waiting);  // cancelled
  f.slots.give_back(1);
  CHECK(f.slots.grant(1));
}

TEST(what_is_granted_is_not_for_the_queue_and_joins_in_the_next_step) {
  Fixture f(100, small());
  for (int i = 0; i < 3; ++i) CHECK(f.slots.grant(0));
  for (int i = 0; i < 4; ++i) f.add(8);
  f.step();
  CHECK_EQ(f.scheduler.num_running(), 1);
  for (int i = 0; i < 3; ++i) {
    Sequence& joined = f.join_granted(30, f.pool.grant(4).value());
    joined.spec.key.router_epoch = 0;
    f.step();
    CHECK(joined.state == Sequence::State::kRunning);
    CHECK_EQ(joined.num_output(), 2);
  }
  CHECK_EQ(f.scheduler.num_running(), 4);
  CHECK_EQ(f.slots.counts().taken, 4);
}

TEST(an_admission_that_is_refused_leaves_the_order_of_eviction) {
  Fixture f(10, small());
  const auto cache = [&](std::span<const BlockHash> hashes) {
    const auto blocks = f.pool.allocate(static_cast<int>(hashes.size())).value();
    for (size_t i = 0; i < blocks.size(); ++i) f.pool.insert(blocks[i], hashes[i]);
    f.pool.release(blocks);
  };
  const Sequence& waiting = f.add(80);  // ten blocks, two of them hits
  const Sequence& other = f.make(8, 1, Role::kAlone, 0);
  const auto hits = std::span(waiting.hasher.hashes()).first(2);
  cache(hits);
  cache(other.hasher.hashes());
  const auto held = f.pool.allocate(4).value();
  f.step();
  CHECK(waiting.state == Sequence::State::kWaiting);
  CHECK(f.pool.allocate(4).has_value());  // three are free
  CHECK_EQ(f.pool.count_cached(hits), 1);
  CHECK_EQ(f.pool.count_cached(other.hasher.hashes()), 1);
}

TEST(a_preempted_sequence_keeps_its_slot) {
  Fixture f(5, small());
  f.add(8, 200);
  Sequence& second = f.add(8, 200);
  f.step_until([&] { return f.scheduler.num_preemptions() == 1; });
  REQUIRE(second.state == Sequence::State::kWaiting);
  CHECK_EQ(f.slots.counts().taken, 2);
  f.scheduler.finish(second);
  CHECK_EQ(f.slots.counts().taken, 1);
}

TEST(queued_tokens_are_those_of_the_waiting_and_the_uncomputed) {
  Fixture f(100, small());
  f.add(50);
  f.add(20);
  CHECK_EQ(f.scheduler.queued_tokens(), 70);
  f.step();
  CHECK_EQ(f.scheduler.queued_tokens(), 38);
}

TEST(where_forms_differ_a_replay_computes_prompt_and_output_in_their_own_forms) {
  Fixture f(100, small(), /*forms_equal=*/false);
  f.add(20, 50, Role::kAlone, /*output=*/5);
  const Schedule prompt = f.step();
  REQUIRE(prompt.chunks.size() == 1);
  CHECK_EQ(prompt.chunks[0].rows, 20);
  CHECK(prompt.chunks[0].form == Form::kPrefill);
  CHECK(!prompt.chunks[0].samples);
  const Schedule output = f.step();
  REQUIRE(output.chunks.size() == 1);
  CHECK_EQ(output.chunks[0].rows, 5);
  CHECK(output.chunks[0].form == Form::kDecode);
  CHECK(output.chunks[0].samples);
}

TEST(a_step_ahead_plans_the_rows_behind_those_that_run) {
  Fixture f(100, small());
  f.steps_ahead = 1;
  Sequence& sequence = f.add(40, 3);
  const auto first_tokens = [&] {
    std::vector<int> first;
    for (const Chunk& chunk : f.step().chunks) first.push_back(chunk.first_token);
    return first;
  };
  CHECK_EQ(first_tokens(), std::vector<int>({0}));
  CHECK_EQ(first_tokens(), std::vector<int>({32}));
  CHECK_EQ(sequence.num_computed, 32);
  CHECK_EQ(sequence.num_pending, 1);
  CHECK_EQ(first_tokens(), std::vector<int>({40}));  // a decode row: its token is not known yet
  CHECK_EQ(f.in_flight.back()[0].decode, true);
  CHECK_EQ(first_tokens(), std::vector<int>({41}));
  CHECK_EQ(sequence.planned_len(), 43);
  CHECK_EQ(first_tokens(), std::vector<int>());  // max_tokens is known ahead: no row is too much
  CHECK_EQ(sequence.len(), 43);
  CHECK_EQ(sequence.steps_in_flight, 0);
}

// Blocks of the preempted one wait for the running step; the step being built, which runs behind it, takes them.
TEST(one_missing_block_preempts_one_sequence_also_a_step_ahead) {
  for (int ahead : {0, 1}) {
    Fixture f(9, small());
    f.steps_ahead = ahead;
    for (int i = 0; i < 3; ++i) f.add(15);  // two blocks each, then three
    f.step_until([&] { return f.sequences[0]->planned_len() == 25; });
    CHECK_EQ(f.scheduler.num_preemptions(), 0);
    f.step();
    CHECK_EQ(f.scheduler.num_preemptions(), 1);
    CHECK(f.sequences[2]->state == Sequence::State::kWaiting);
    CHECK_EQ(f.sequences[2]->num_preemptions, 1);  // rows of it that still run are in none of its blocks
    CHECK_EQ(f.sequences[1]->num_preemptions, 0);
    CHECK(f.sequences[1]->state == Sequence::State::kRunning);
    f.step_until([&] { return f.sequences[1]->len() > 27; });
    CHECK_EQ(f.scheduler.num_preemptions(), 1);
  }
}

TEST(a_preempted_sequence_keeps_the_token_that_the_running_step_samples_and_waits_for_it) {
  Fixture f(6, small());
  f.steps_ahead = 1;
  Sequence& first = f.add(15);
  Sequence& second = f.add(15);
  f.step_until([&] { return f.scheduler.num_preemptions() > 0; });
  CHECK_EQ(second.num_pending, 0);  // published with the step that came before
  CHECK_EQ(second.len(), first.len());
  CHECK_EQ(second.num_computed, 0);
  CHECK_EQ(second.num_launched, 0);
  f.scheduler.finish(first);
  f.step();
  CHECK(second.state == Sequence::State::kRunning);
  f.step();
  CHECK_EQ(second.num_computed, second.len() - 1);
}

TEST(a_block_that_a_transfer_reads_is_not_taken_for_the_next_step) {
  BlockPool pool(4, 8);
  const auto all = pool.allocate(4).value();
  pool.step_launched(1);
  pool.pin(std::span(all).first(1));
  pool.release(std::span(all).first(2));  // one waits for the step and the transfer, one for the step
  CHECK(!pool.allocate(1).has_value());
  CHECK(pool.can_allocate_for_step(1));
  CHECK(!pool.can_allocate_for_step(2));
  CHECK(!pool.allocate_for_step(2).has_value());
  CHECK_EQ(pool.allocate_for_step(1).value(), std::vector<int32_t>({all[1]}));
  CHECK(!pool.grant(1).has_value());
  pool.check_integrity();
  pool.unpin(std::span(all).first(1));
  CHECK_EQ(pool.allocate_for_step(1).value(), std::vector<int32_t>({all[0]}));
  pool.step_ended(1);
  pool.check_integrity();
  CHECK_EQ(pool.counts().referenced, 4);
}

TEST(an_exact_prefix_hit_leaves_one_token_to_compute) {
  Fixture f(100, small());
  Sequence& first = f.add(32);
  f.step();
  f.scheduler.finish(first);
  SequenceSpec spec = first.spec;
  BlockHasher hasher("salt", 8, false);
  f.sequences.push_back(std::make_unique<Sequence>(spec, Role::kAlone, hasher, 256));
  f.scheduler.add(*f.sequences.back());
  CHECK_EQ(rows_of(f.step()), std::vector<int>({8}));
  CHECK_EQ(f.sequences.back()->num_cached, 24);
}

// What it gave back is too little for it, as another one has taken of it; unless it finds again in another's blocks
// what it had computed itself. Admitted at once it could be preempted at the next block, for ever.
TEST(nobody_is_admitted_in_the_step_that_preempted) {
  int preemptions = 0;
  for (unsigned seed = 0; seed < 100; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](size_t limit) { return static_cast<int>(random() % limit); };
    Fixture f(6 + below(12), small());
    f.steps_ahead = below(2);
    std::deque<std::vector<int32_t>> pinned;  // by transfers
    for (int i = 0; i < 80; ++i) {
      if (below(3) == 0 && f.scheduler.num_waiting() < 4) {
        std::vector<int32_t> prompt = random_tokens(1 + below(40), i);
        if (below(2) == 0 && !f.sequences.empty()) {  // blocks in common with another one
          const std::vector<int32_t>& other = f.sequences[below(f.sequences.size())]->tokens;
          prompt.assign(other.begin(), other.begin() + std::min<int>(40, 1 + below(other.size())));
        }
        f.scheduler.add(f.make(prompt, 2 + below(40)));
      }
      for (const auto& sequence : f.sequences) {
        if (sequence->state != Sequence::State::kRunning) continue;
        if (sequence->launched_to_its_end() && sequence->steps_in_flight == 0) {
          f.scheduler.finish(*sequence);
        } else if (below(20) == 0 && !sequence->blocks.empty()) {
          f.pool.pin(pinned.emplace_back(sequence->blocks));
        }
      }
      if (!pinned.empty() && below(4) == 0) {
        f.pool.unpin(pinned.front());
        pinned.pop_front();
      }
      const uint64_t before = f.scheduler.num_preemptions();
      const Schedule& plan = f.step();
      if (f.scheduler.num_preemptions() == before || plan.empty()) continue;
      ++preemptions;
      CHECK(plan.admitted.empty());
    }
  }
  CHECK(preemptions > 100);
}

TEST(a_small_request_does_not_overtake_a_large_one) {
  Fixture f(10, small());
  Sequence& first = f.add(32);
  f.step();
  Sequence& large = f.add(60);
  Sequence& little = f.add(4);
  for (int i = 0; i < 5; ++i) f.step();
  CHECK(large.state == Sequence::State::kWaiting);
  CHECK(little.state == Sequence::State::kWaiting);
  f.scheduler.finish(first);
  const Schedule& plan = f.step();
  REQUIRE(!plan.admitted.empty());
  CHECK(plan.admitted[0] == &large);
}

TEST(what_joined_brought_its_slot_along_and_runs_before_those_that_wait_for_one) {
  EngineConfig config = small();
  config.max_num_seqs = 2;
  Fixture f(40, config);
  Sequence& first = f.add(8);
  f.step();
  Sequence& waiting = f.add(8);
  Sequence& joined = f.join(20);
  CHECK_EQ(f.scheduler.num_waiting(), 2);
  CHECK_EQ(f.scheduler.num_without_slot(), 1);
  CHECK_EQ(f.scheduler.demand().sequences, 2);  // the one that runs, the one that joined
  const Schedule& plan = f.step();
  CHECK(joined.state == Sequence::State::kRunning);
  CHECK_EQ(plan.decode_rows, 2);  // it decodes at once
  CHECK(plan.admitted.empty());
  f.scheduler.finish(first);
  f.step();
  CHECK(waiting.state == Sequence::State::kRunning);
}

TEST(a_sequence_may_finish_wherever_it_is_and_leaves_slot_and_blocks) {
  EngineConfig config = small();
  config.max_num_seqs = 2;
  const auto over = [&](auto make) {
    Fixture f(12, config);
    Sequence& sequence = make(f);
    f.scheduler.finish(sequence);
    for (const auto& each : f.sequences)
      if (each.get() != &sequence) f.scheduler.finish(*each);
    CHECK_EQ(f.pool.counts().referenced, 0);
    CHECK_EQ(f.scheduler.num_waiting() + f.scheduler.num_running(), 0);
    CHECK_EQ(f.scheduler.queued_tokens(), 0);
    CHECK_EQ(f.scheduler.demand().sequences, 0);
    CHECK_EQ(f.slots.counts().taken, 0);
    const Sequence& one = f.add(8);  // both slots are there
    const Sequence& two = f.add(8);
    CHECK_EQ(f.step().admitted.size(), 2);
    CHECK(one.slot != two.slot && std::min(one.slot, two.slot) == 0 && std::max(one.slot, two.slot) == 1);
  };
  const auto full = [](Fixture& f) {
    f.add(8);
    f.add(8);
    f.step();
  };
  over([](Fixture& f) -> Sequence& { return f.add(8); });  // never scheduled
  over([&](Fixture& f) -> Sequence& {                      // waits for a slot
    full(f);
    return f.add(8);
  });
  over([&](Fixture& f) -> Sequence& {  // joined, not scheduled yet
    f.add(8);
    f.step();
    return f.join(20);
  });
  over([&](Fixture& f) -> Sequence& {  // runs, in the middle of its prompt
    Sequence& sequence = f.add(60);
    f.step();
    CHECK_EQ(sequence.num_computed, 32);
    return sequence;
  });
  over([&](Fixture& f) -> Sequence& {  // runs, joined
    Sequence& sequence = f.join(20);
    f.step();
    CHECK(sequence.state == Sequence::State::kRunning);
    return sequence;
  });
  over([&](Fixture& f) -> Sequence& {  // held
    Sequence& sequence = f.add(8, 50, Role::kSender);
    f.step();
    CHECK(sequence.state == Sequence::State::kHeld);
    return sequence;
  });
  over([&](Fixture& f) -> Sequence& {  // preempted
    f.add(40);
    Sequence& sequence = f.add(40);
    f.step_until([&] { return f.scheduler.num_preemptions() > 0; });
    CHECK(sequence.state == Sequence::State::kWaiting);
    return sequence;
  });
}

TEST(a_decode_that_finds_no_block_where_only_senders_run_is_a_broken_invariant) {
  Fixture f(4, small());
  Sequence& sender = f.add(15, 50, Role::kSender, /*output=*/1);
  f.scheduler.schedule(f.cost);
  sender.num_launched = sender.num_computed = 15;  // it decodes, and has lost the block for that
  sender.num_pending = sender.steps_in_flight = 0;
  f.pool.release(std::span(sender.blocks).subspan(1));
  sender.blocks.pop_back();
  (void)f.pool.allocate(3).value();
  CHECK_THROWS_WITH(f.scheduler.schedule(f.cost), Error, "needs a block and nobody may be preempted");
}

// ---- Solo sequences

Sequence& add_solo(Fixture& f, int prompt, int max_tokens = 50) {
  Sequence& sequence = f.make(prompt, max_tokens, Role::kAlone, 0);
  sequence.spec.solo = true;
  f.scheduler.add(sequence);
  return sequence;
}

bool has(const Schedule& plan, const Sequence& sequence) {
  return std::ranges::any_of(plan.chunks, [&](const Chunk& chunk) { return chunk.sequence == &sequence; });
}

TEST(a_solo_sequence_is_announced_once_and_waits_until_its_notice_is_out) {
  Fixture f(100, small());
  Sequence& solo = add_solo(f, 10);
  CHECK(f.step().announced == &solo);
  for (int i = 0; i < 3; ++i) {
    const Schedule& plan = f.step();
    CHECK(plan.empty());
    CHECK(plan.announced == nullptr);
  }
  solo.notice = Sequence::Notice::kOver;
  CHECK_EQ(rows_of(f.step()), std::vector<int>({10}));
}

TEST(a_solo_sequence_shares_no_step_until_its_second_token) {
  for (const int steps_ahead : {0, 1}) {
    Fixture f(100, small());
    f.steps_ahead = steps_ahead;
    Sequence& before = f.add(10);
    f.step();
    Sequence& solo = add_solo(f, 50);
    Sequence& behind = f.add(5);
    int prefills = 0, solo_steps = 0, shared = 0;
    for (int i = 0; i < 30; ++i) {
      if (solo.notice == Sequence::Notice::kSaid) solo.notice = Sequence::Notice::kOver;
      const bool alone = solo.solo();
      const Schedule& plan = f.step();
      CHECK(!plan.empty());
      if (!has(plan, solo)) {
        CHECK(has(plan, before));  // every other step is the others'
        CHECK(!has(plan, behind) || solo.state == Sequence::State::kRunning);
        continue;
      }
      if (alone) {
        CHECK_EQ(plan.chunks.size(), size_t{1});
        prefills += !plan.chunks[0].decode;
        ++solo_steps;
      } else {
        CHECK(has(plan, before) && has(plan, behind));
        ++shared;
      }
    }
    CHECK_EQ(prefills, 2);  // 32 and 18 rows
    CHECK_EQ(solo_steps, 3);
    CHECK(shared > 10);
  }
}

TEST(two_solo_sequences_share_no_step_either) {
  Fixture f(100, small());
  std::vector<Sequence*> solos{&add_solo(f, 40), &add_solo(f, 40)};
  for (int i = 0; i < 20; ++i) {
    for (Sequence* solo : solos)
      if (solo->notice == Sequence::Notice::kSaid) solo->notice = Sequence::Notice::kOver;
    const bool both = solos[0]->solo() || solos[1]->solo();
    const Schedule& plan = f.step();
    if (both && has(plan, *solos[0])) CHECK(!has(plan, *solos[1]) || !(solos[0]->solo() || solos[1]->solo()));
  }
  for (const Sequence* solo : solos) CHECK(solo->num_output() > Sequence::kSoloTokens);
}

TEST(a_preempted_solo_sequence_is_not_announced_again) {
  Fixture f(8, small());
  f.add(24);
  f.step();
  Sequence& solo = add_solo(f, 24);
  f.step();
  solo.notice = Sequence::Notice::kOver;
  f.step_until([&] { return solo.num_preemptions == 1; });
  for (int i = 0; i < 10; ++i) CHECK(f.step().announced == nullptr);
}

// Of a step's words about tokens more than half.
void say_much_of_tokens(Sequence& sequence) { sequence.spec.sampling.allowed_token_ids.assign(40'000, 1); }

TEST(who_says_more_of_tokens_than_a_step_can_carry_waits_for_the_next_one) {
  for (const int steps_ahead : {0, 1}) {
    EngineConfig config = small();
    config.max_num_seqs = 8;
    Fixture f(100, config);
    f.steps_ahead = steps_ahead;
    Sequence &first = f.add(4), &second = f.add(4), &third = f.add(4);
    say_much_of_tokens(first);
    say_much_of_tokens(second);
    {
      const Schedule& plan = f.step();
      CHECK(has(plan, first) && !has(plan, second) && !has(plan, third));  // nobody overtakes who stands first
      CHECK(second.state == Sequence::State::kWaiting);
    }
    {
      const Schedule& plan = f.step();
      CHECK(has(plan, second) && has(plan, third));
    }
    Sequence &joined = f.join(4), &behind = f.join(4), &plain = f.join(4);
    say_much_of_tokens(joined);
    say_much_of_tokens(behind);
    {
      const Schedule& plan = f.step();
      CHECK(has(plan, joined) && !has(plan, behind) && has(plan, plain));
    }
    const Schedule& plan = f.step();
    CHECK(has(plan, joined) && has(plan, behind) && has(plan, plain));
  }
}

TEST(words_that_nobody_brings_are_anothers) {
  // Joined, without a block for its next token, which nobody has: it is preempted in the step that would carry its
  // words.
  Fixture f(4, small());
  Sequence& joined = f.join(16);
  const auto others = f.pool.allocate_for_step(2).value();
  say_much_of_tokens(joined);
  Sequence& first = f.add_of_priority(-1, 4);
  say_much_of_tokens(first);
  const Schedule& plan = f.step();
  CHECK_EQ(joined.num_preemptions, 1);
  CHECK(has(plan, first));
}

}  // namespace
}  // namespace rtp_llm
