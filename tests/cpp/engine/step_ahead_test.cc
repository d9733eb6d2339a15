// A step is launched before the one before it has ended: what ends, is cancelled, preempted or handed over in between,
// and random mixes of it all, compared by bits with undisturbed runs. The device is a CPU behind a queue.
//
// RTP_TEST_SCHEDULES=<n> runs n seeded schedules instead of a few.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <random>

#include "check.h"
#include "device/ops.h"
#include "rig.h"

namespace rtp_llm {
namespace {

using testing::Answer;
using testing::key_of;
using testing::random_tokens;
using testing::Rig;
using testing::RigOptions;
using testing::spec_of;

RigOptions behind(uint64_t delay_seed = 0) { return {.queued = true, .delay_seed = delay_seed}; }

bool is_prefix_of(const Answer& part, const Answer& whole) {
  return part.tokens.size() <= whole.tokens.size() &&
         std::equal(part.tokens.begin(), part.tokens.end(), whole.tokens.begin()) &&
         std::equal(part.logprob_bits.begin(), part.logprob_bits.end(), whole.logprob_bits.begin());
}

TEST(an_end_that_only_the_token_tells_costs_one_row_and_leaves_nothing) {
  const SequenceSpec spec = spec_of(1, random_tokens(10, 2), 30);
  Rig plain;
  const Answer whole = plain.run_one(spec);
  RigOptions options = behind();
  options.engine.eos_token_ids = {whole.tokens[7]};
  Rig rig(options);
  const auto at = std::find(whole.tokens.begin(), whole.tokens.end(), whole.tokens[7]) - whole.tokens.begin();
  const Answer ended = rig.run_one(spec);
  CHECK_EQ(static_cast<int64_t>(ended.tokens.size()), at + 1);
  CHECK(ended.finish == FinishReason::kStop);
  CHECK(is_prefix_of(ended, whole));
  rig.check_idle();
  SequenceSpec other = spec_of(2, random_tokens(10, 3), 5);
  other.sampling.ignore_eos = true;
  rig.run_one(other);
  rig.check_idle();
  // Rows of `at` tokens and one too many; an end by length is known ahead.
  CHECK_EQ(rig.engine->load().decode_tokens_computed, at + 1 + 4);
}

TEST(a_key_that_was_cancelled_is_free_again_though_its_rows_still_run) {
  Rig rig(behind(3));
  rig.start();
  const SequenceSpec spec = spec_of(1, random_tokens(20, 1), 60);
  Rig plain;
  const Answer whole = plain.run_one(spec);
  for (int round = 0; round < 5; ++round) {
    rig.engine->add(spec, Role::kAlone);
    rig.wait_for_tokens(spec.key, 3);
    rig.engine->cancel(spec.key);
    rig.ear.wait([&] { return rig.ear.finished.contains(spec.key); });
    rig.take(rig.engine->take_outputs());
    CHECK(is_prefix_of(rig.answers[spec.key], whole));
    rig.answers.erase(spec.key);
    rig.ear.note([&] { rig.ear.finished.clear(); });
  }
  CHECK(rig.run_one(spec) == whole);
  rig.check_idle();
}

TEST(a_sender_that_is_cancelled_and_released_while_its_rows_run_samples_nothing) {
  RigOptions options = behind(5);
  options.engine.max_num_batched_tokens = 16;
  Rig rig(options);
  const SequenceSpec spec = spec_of(1, random_tokens(100, 1));
  rig.engine->add(spec, Role::kSender);
  rig.ear.at_layers = [&] {
    rig.engine->cancel(spec.key);
    rig.engine->release(spec.key);
  };
  rig.start();
  rig.ear.wait([&] { return rig.ear.finished.contains(spec.key); });
  rig.check_idle();
  CHECK(!rig.ear.prefilled.contains(spec.key));
}

TEST(layers_are_told_when_they_are_launched_with_the_event_that_says_when_they_are_stored) {
  RigOptions options = behind(7);
  options.engine.max_num_batched_tokens = 16;
  Rig rig(options);
  const SequenceSpec spec = spec_of(1, random_tokens(60, 1));
  rig.engine->add(spec, Role::kSender);
  rig.start();
  rig.ear.wait([&] { return rig.ear.prefilled.contains(spec.key); });
  uint64_t last = 0;
  for (const ComputedLayers& piece : rig.ear.pieces[spec.key]) {
    CHECK(piece.ready.number > last);
    CHECK(rig.device->done(piece.ready));  // what is told of the step comes behind it
    last = piece.ready.number;
  }
  CHECK_EQ(rig.ear.pieces[spec.key].size(), 8);  // four chunks, two layer groups
  rig.engine->release(spec.key);
  rig.check_idle();
}

TEST(a_fault_of_launched_work_stops_the_engine_and_is_said) {
  if (testing::test_backend() != "cpu") return;  // a GPU's ops check their arguments where they are called
  Rig rig(behind());
  // A token that no check of the engine sees: the ops find it, on the device's thread.
  SequenceSpec spec = spec_of(1, random_tokens(20, 1));
  rig.start();
  rig.run_one(spec_of(2, random_tokens(5, 5), 2));
  rig.device->ops().embedding({});
  rig.engine->add(spec, Role::kAlone);
  CHECK_THROWS(rig.wait_for(spec.key), Error);
  rig.ear.wait([&] { return !rig.ear.failed.empty(); });
  CHECK(rig.engine->failure().has_value());
}

// ---- Random schedules

constexpr int kNumSpecs = 24;

EngineConfig engine_of(int kind) {
  const int block_tokens = kind % 2 == 0 ? testing::small_block() : 16;
  EngineConfig config{.max_num_batched_tokens = std::array{64, 7, 24}[kind % 3],
                      .max_num_seqs = std::array{8, 3, 5}[kind % 3],
                      .max_model_len = 128,
                      .block_tokens = block_tokens,
                      .num_kv_blocks = std::array{320, 176, 160, 384}[kind % 4] / block_tokens,
                      .enable_prefix_caching = kind % 5 != 4,
                      .layers_per_message = 1 + kind % 3,
                      .eos_token_ids = {3, 50}};
  return config;
}

// The requests of all schedules, and what each answers undisturbed, on a device that doesn't run behind.
struct Catalogue {
  Catalogue() {
    RigOptions options;
    options.engine = engine_of(0);
    options.engine.max_num_seqs = 1;
    options.engine.num_kv_blocks = 200;
    options.engine.enable_prefix_caching = false;
    Rig rig(options);
    const std::vector<int32_t> shared = random_tokens(24, 500);
    for (uint64_t i = 0; i < kNumSpecs; ++i) {
      std::vector<int32_t> prompt = random_tokens(1 + static_cast<int>(i * 7 % 45), static_cast<int>(i));
      if (i % 3 == 0) prompt.insert(prompt.begin(), shared.begin(), shared.end());
      specs.push_back(spec_of(i, std::move(prompt), 2 + static_cast<int>(i * 5 % 40)));
      answers.push_back(rig.run_one(specs.back()));
    }
  }
  std::vector<SequenceSpec> specs;
  std::vector<Answer> answers;
};

// Two engines behind queues and what runs in them.
class Mix {
 public:
  Mix(const Catalogue& catalogue, int kind, uint64_t seed)
      : catalogue_(catalogue), sender_(options_of(kind, seed)), receiver_(options_of(kind, seed + 1)) {
    sender_.start();
    receiver_.start();
  }

  struct Counts {
    int cancelled = 0, handed_over = 0, refused = 0, stopped = 0;
  };

  void run(uint64_t seed) {
    random_.seed(seed);
    ++attempt_;
    std::vector<Part> parts;
    const int count = 3 + below(8);
    for (int i = 0; i < count; ++i) {
      parts.push_back(start(below(kNumSpecs), i));
      if (below(3) == 0) wait_for_some(parts[below(i + 1)]);
      if (below(4) == 0) cancel(parts[below(i + 1)]);
    }
    for (Part& part : parts)
      if (part.hands_over) hand_over(part);
    for (const Part& part : parts) check_end(part);
    sender_.check_idle();
    receiver_.check_idle();
    sender_.answers.clear();
    receiver_.answers.clear();
  }
  const Counts& counts() const { return counts_; }
  uint64_t preemptions() const { return sender_.engine->load().preemptions + receiver_.engine->load().preemptions; }
  uint64_t hits() const {
    return sender_.engine->load().prefix_hit_tokens + receiver_.engine->load().prefix_hit_tokens;
  }

 private:
  struct Part {
    int index;  // in the catalogue
    SequenceSpec spec;
    bool hands_over = false, cancelled = false;
    Answer first;  // what the sender has sampled
    bool over = false;
  };

  static RigOptions options_of(int kind, uint64_t seed) {
    RigOptions options = behind(seed);
    options.engine = engine_of(kind);
    return options;
  }
  int below(int bound) { return static_cast<int>(random_() % static_cast<unsigned>(bound)); }

  Part start(int index, int number) {
    Part part{.index = index, .spec = catalogue_.specs[index]};
    part.spec.key = {
        .router_epoch = attempt_, .request = static_cast<uint64_t>(index), .attempt = static_cast<uint32_t>(number)};
    part.hands_over = below(3) == 0;
    (part.hands_over ? sender_ : receiver_).engine->add(part.spec, part.hands_over ? Role::kSender : Role::kAlone);
    return part;
  }
  // Senders hold blocks until they are handed over, so nobody waits for theirs here.
  void wait_for_some(const Part& part) {
    if (part.hands_over || part.cancelled) return;
    receiver_.wait_for_tokens(part.spec.key, 1 + below(static_cast<int>(catalogue_.answers[part.index].tokens.size())));
  }
  void cancel(Part& part) {
    if (part.cancelled) return;
    part.cancelled = true;
    ++counts_.cancelled;
    (part.hands_over ? sender_ : receiver_).engine->cancel(part.spec.key);
  }

  void hand_over(Part& part) {
    const RequestKey key = part.spec.key;
    std::optional<testing::Prefilled> sampled;
    std::vector<int32_t> source;
    sender_.ear.wait([&] {
      if (const auto found = sender_.ear.prefilled.find(key); found != sender_.ear.prefilled.end()) {
        sampled = found->second;
        source = sender_.ear.scheduled[key].blocks;
        return true;
      }
      return sender_.ear.finished.contains(key);
    });
    part.over = true;
    if (sampled) {
      part.first = sampled->answer(part.spec.output.size());
      if (sampled->finish == FinishReason::kNone) part.over = !join(part, sampled->token, source);
    }
    sender_.engine->release(key);
  }
  bool join(Part& part, int32_t token, const std::vector<int32_t>& source) {
    BlockPool& pool = receiver_.engine->block_pool();
    SlotPool& slots = receiver_.engine->slot_pool();
    const bool has_slot = slots.grant(part.spec.key.router_epoch);
    const auto granted = has_slot ? pool.grant(static_cast<int>(source.size())) : std::nullopt;
    if (!granted) {
      if (has_slot) slots.give_back(part.spec.key.router_epoch);
      ++counts_.refused;
      return false;
    }
    const int64_t bytes = sender_.engine->kv_layout().groups[0].block_bytes();
    std::vector<uint8_t> block(static_cast<size_t>(bytes));
    for (size_t i = 0; i < source.size(); ++i) {
      const auto at = [&](Rig& rig, int32_t id) {
        return static_cast<uint8_t*>(rig.engine->kv_pool_base()) + id * bytes;
      };
      sender_.device->copy(block.data(), at(sender_, source[i]), bytes);
      receiver_.device->copy(at(receiver_, (*granted)[i]), block.data(), bytes);
    }
    pool.granted_to_referenced(*granted);
    SequenceSpec joined = part.spec;
    joined.output.push_back(token);
    part.cancelled = false;  // what ran at the sender has sampled before it was heard
    receiver_.engine->join(joined, *granted);
    ++counts_.handed_over;
    if (below(5) == 0) {
      receiver_.engine->cancel(part.spec.key);
      part.cancelled = true;
    }
    return true;
  }

  void check_end(const Part& part) {
    const RequestKey key = part.spec.key;
    const Answer& expected = catalogue_.answers[part.index];
    Answer answer = part.first;
    if (!part.over) {
      receiver_.ear.wait([&] { return receiver_.ear.finished.contains(key); });
      receiver_.take(receiver_.engine->take_outputs());
      const Answer& rest = receiver_.answers[key];
      answer.tokens.insert(answer.tokens.end(), rest.tokens.begin(), rest.tokens.end());
      answer.logprob_bits.insert(answer.logprob_bits.end(), rest.logprob_bits.begin(), rest.logprob_bits.end());
      answer.finish = rest.finish;
      if (!part.cancelled) CHECK_EQ(answer.tokens.size(), expected.tokens.size());
      if (!part.cancelled) CHECK(answer.finish == expected.finish);
    }
    CHECK(is_prefix_of(answer, expected));
    counts_.stopped += answer.finish == FinishReason::kStop;
  }

  const Catalogue& catalogue_;
  Rig sender_, receiver_;
  std::mt19937_64 random_;
  uint64_t attempt_ = 100;
  Counts counts_;
};

TEST(random_schedules_of_cancels_ends_preemptions_and_handovers_give_the_bits_of_undisturbed_runs) {
  const char* const given = std::getenv("RTP_TEST_SCHEDULES");
  const int total = given != nullptr ? std::atoi(given) : 60;
  constexpr int kKinds = 10;
  const Catalogue catalogue;
  Mix::Counts all;
  uint64_t preemptions = 0, hits = 0;
  for (int kind = 0; kind < kKinds; ++kind) {
    Mix mix(catalogue, kind, 1000 + static_cast<uint64_t>(kind));
    for (int i = kind; i < total; i += kKinds) mix.run(static_cast<uint64_t>(i) + 1);
    all.cancelled += mix.counts().cancelled;
    all.handed_over += mix.counts().handed_over;
    all.refused += mix.counts().refused;
    all.stopped += mix.counts().stopped;
    preemptions += mix.preemptions();
    hits += mix.hits();
  }
  std::printf(
      "  %d schedules: %d cancelled, %d handed over (%d refused), %d stopped by a token, %lu preemptions, %lu hits\n",
      total, all.cancelled, all.handed_over, all.refused, all.stopped, static_cast<unsigned long>(preemptions),
      static_cast<unsigned long>(hits));
  CHECK(all.cancelled > 0 && all.handed_over > 0 && all.stopped > 0 && preemptions > 0 && hits > 0);
}

}  // namespace
}  // namespace rtp_llm
