// Scheduler alone: ids and counts, no device. A "step" here is: schedule, then pretend that it ran.
#include "engine/scheduler.h"

#include <memory>

#include "check.h"
#include "rig.h"

namespace rtp_llm {
namespace {

using testing::key_of;
using testing::random_tokens;

struct Fixture {
  explicit Fixture(int num_blocks, EngineConfig given = {}, bool forms_equal = true)
      : config(given), pool(num_blocks, given.block_tokens), scheduler(config, pool, forms_equal) {}

  Sequence& add(int prompt, int max_tokens = 50, Role role = Role::kAlone, int output = 0) {
    SequenceSpec spec{.key = key_of(sequences.size()),
                      .prompt = random_tokens(prompt, static_cast<int>(sequences.size())),
                      .output = random_tokens(output, 1),
                      .max_tokens = max_tokens};
    BlockHasher hasher("salt", config.block_tokens, false);
    sequences.push_back(std::make_unique<Sequence>(spec, role, hasher, config.max_model_len));
    scheduler.add(*sequences.back());
    return *sequences.back();
  }
  template <class Condition>
  void step_until(Condition holds) {
    for (int i = 0; i < 200 && !holds(); ++i) step();
    REQUIRE(holds());
  }
  // Runs a step; who reached its last token gets one more.
  const Schedule& step() {
    const Schedule& plan = scheduler.schedule(cost);
    for (const Chunk& chunk : plan.chunks) {
      Sequence& sequence = *chunk.sequence;
      CHECK_EQ(chunk.first_token, sequence.num_computed);
      CHECK(static_cast<int>(sequence.blocks.size()) * config.block_tokens >= chunk.first_token + chunk.rows);
      sequence.num_computed += chunk.rows;
      for (int& next = sequence.num_offered_blocks; next < sequence.num_computed / config.block_tokens; ++next)
        pool.insert(sequence.blocks[next], sequence.hasher.hashes()[next]);
      if (!chunk.samples) continue;
      sequence.append(7);
      if (sequence.role == Role::kSender) scheduler.hold(sequence);
    }
    pool.check_integrity();
    return plan;
  }

  EngineConfig config;
  BlockPool pool;
  Scheduler scheduler;
  StepCost cost;
  std::vector<std::unique_ptr<Sequence>> sequences;
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
  CHECK(f.scheduler.max_rows() >= 5);
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
  CHECK_EQ(demand.blocks, 4 + Sequence::blocks_for(second.len(), f.config.block_tokens));
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

}  // namespace
}  // namespace rtp_llm
