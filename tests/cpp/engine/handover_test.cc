// A sender and a joined sequence in one process: KV copied between two engines' pools by the layout.
#include <cstring>

#include "check.h"
#include "rig.h"

namespace rtp_llm {
namespace {

using testing::Answer;
using testing::key_of;
using testing::random_tokens;
using testing::Rig;
using testing::RigOptions;
using testing::spec_of;

const std::vector<DType> kTypes = testing::test_types();

uint8_t* address(Engine& engine, int32_t block, int layer_index) {
  const KvGroup& group = engine.kv_layout().groups[0];
  return static_cast<uint8_t*>(engine.kv_pool_base()) + block * group.block_bytes() + group.layer_offset(layer_index);
}

// Copies blocks [first_block, end) of layers [first_layer, first_layer + num_layers).
void copy_layers(Engine& from, const std::vector<int32_t>& source, Engine& to, const std::vector<int32_t>& target,
                 int first_layer, int num_layers, int first_block, int end_block) {
  const int64_t bytes = num_layers * from.kv_layout().groups[0].layer_bytes();
  for (int i = first_block; i < end_block; ++i)
    std::memcpy(address(to, target[i], first_layer), address(from, source[i], first_layer), bytes);
}

// What the transfer side does: grants blocks at the receiver and joins there.
struct Handover {
  Rig& sender;
  Rig& receiver;

  // Prefills `spec` at the sender, hands over, and returns the whole answer.
  Answer run(const SequenceSpec& spec) {
    const RequestKey key = spec.key;
    sender.engine->add(spec, Role::kSender);
    sender.start();
    receiver.start();
    sender.ear.wait([&] { return sender.ear.prefilled.contains(key); });
    Answer whole = sender.ear.prefilled[key].answer(spec.output.size());
    if (whole.finish != FinishReason::kNone) {
      sender.engine->release(key);
      return whole;
    }
    const auto& source = sender.ear.scheduled[key].blocks;
    const auto granted = receiver.engine->block_pool().grant(static_cast<int>(source.size()));
    check(granted.has_value() && receiver.engine->slot_pool().grant(key.router_epoch), "no room");
    check_pieces(spec);
    copy_layers(*sender.engine, source, *receiver.engine, *granted, 0, testing::kLayers, 0,
                static_cast<int>(source.size()));
    sender.engine->release(key);
    receiver.engine->block_pool().granted_to_referenced(*granted);
    SequenceSpec joined = spec;
    joined.output.push_back(whole.tokens[0]);
    receiver.engine->join(joined, *granted);
    const Answer rest = receiver.wait_for(key);
    CHECK_EQ(rest.first_position, spec.output.size() + 1);
    whole.tokens.insert(whole.tokens.end(), rest.tokens.begin(), rest.tokens.end());
    whole.logprob_bits.insert(whole.logprob_bits.end(), rest.logprob_bits.begin(), rest.logprob_bits.end());
    whole.top.insert(whole.top.end(), rest.top.begin(), rest.top.end());
    whole.finish = rest.finish;
    return whole;
  }

  // Hits and pieces cover every token of every layer once, layer groups ascending within a chunk.
  void check_pieces(const SequenceSpec& spec) {
    const auto& scheduled = sender.ear.scheduled[spec.key];
    const int prompt = static_cast<int>(spec.prompt.size() + spec.output.size());
    CHECK_EQ(scheduled.tokens, prompt);
    std::vector<int> stored(testing::kLayers, scheduled.cached_tokens);
    for (const ComputedLayers& piece : sender.ear.pieces[spec.key])
      for (int layer = piece.first_layer; layer < piece.first_layer + piece.num_layers; ++layer) {
        CHECK_EQ(piece.first_token, stored[layer]);
        if (layer > 0) CHECK(stored[layer - 1] == piece.first_token + piece.tokens);
        stored[layer] += piece.tokens;
      }
    for (int tokens : stored) CHECK_EQ(tokens, prompt);
  }
};

TEST(a_handover_gives_the_bits_of_an_undivided_run_and_the_receiver_computes_no_prompt_token) {
  for (DType dtype : kTypes) {
    RigOptions options{.dtype = dtype};
    options.engine.max_num_batched_tokens = 24;
    Rig sender(options), receiver(options), alone(options);
    uint64_t decoded = 0;
    for (uint64_t i = 0; i < 6; ++i) {
      const SequenceSpec spec = spec_of(i, random_tokens(1 + 19 * static_cast<int>(i), 60 + i));
      const Answer expected = alone.run_one(spec);
      CHECK(Handover{sender, receiver}.run(spec) == expected);
      decoded += expected.tokens.size() - 1;
    }
    CHECK_EQ(receiver.engine->load().prompt_tokens_computed, 0);
    CHECK_EQ(receiver.engine->load().decode_tokens_computed, decoded);
    receiver.check_idle();
    sender.run_one(spec_of(50, {1}, 1));  // behind the last release
    sender.check_idle();
  }
}

TEST(a_retry_with_tokens_so_far_is_handed_over_from_any_position) {
  const SequenceSpec spec = spec_of(4, random_tokens(30, 3), 12);
  Rig sender, receiver, alone;
  const Answer whole = alone.run_one(spec);
  for (size_t done = 1; done + 1 < whole.tokens.size(); ++done) {
    SequenceSpec retry = spec;
    retry.key.attempt = static_cast<uint32_t>(done);
    retry.output.assign(whole.tokens.begin(), whole.tokens.begin() + done);
    const Answer rest = Handover{sender, receiver}.run(retry);
    CHECK(std::equal(rest.tokens.begin(), rest.tokens.end(), whole.tokens.begin() + done, whole.tokens.end()));
    CHECK(std::equal(rest.logprob_bits.begin(), rest.logprob_bits.end(), whole.logprob_bits.begin() + done,
                     whole.logprob_bits.end()));
  }
  CHECK_EQ(receiver.engine->load().prompt_tokens_computed, 0);
}

TEST(a_second_turn_hits_the_received_blocks_at_the_receiver) {
  Rig sender, receiver, alone;
  const SequenceSpec first = spec_of(1, random_tokens(40, 4), 30);
  const Answer answer = Handover{sender, receiver}.run(first);
  SequenceSpec second = spec_of(2, first.prompt);
  second.prompt.insert(second.prompt.end(), answer.tokens.begin(), answer.tokens.end());
  const Answer hit = receiver.run_one(second);
  CHECK_EQ(hit.cached, 64);
  CHECK(hit == alone.run_one(second));
}

TEST(a_first_token_that_ends_the_answer_is_said_to_the_sender) {
  Rig sender;
  SequenceSpec spec = spec_of(1, random_tokens(40, 4), 1);
  sender.engine->add(spec, Role::kSender);
  sender.start();
  sender.ear.wait([&] { return sender.ear.prefilled.contains(spec.key); });
  CHECK(sender.ear.prefilled[spec.key].finish == FinishReason::kLength);
  CHECK(sender.engine->take_outputs().key.empty());  // the listener decides when it is sent on
  CHECK_EQ(sender.engine->load().blocks.referenced, 3);
  CHECK_THROWS_WITH(sender.engine->check_idle(), Error, "1 sequences");
}

TEST(a_sequence_that_joins_holds_the_slot_of_its_grant_to_its_end) {
  RigOptions two;
  two.engine.max_num_seqs = 2;
  Rig sender, receiver(two), alone;
  const SequenceSpec spec = spec_of(1, random_tokens(40, 4), 10);
  SlotPool& slots = receiver.engine->slot_pool();
  CHECK(slots.grant(9));  // another router's handover is under way all the while
  CHECK(Handover{sender, receiver}.run(spec) == alone.run_one(spec));
  CHECK_EQ(slots.counts().taken, 1);
  CHECK(slots.counts().taken_by == (std::map<uint64_t, int>{{9, 1}}));
  slots.give_back(9);
  receiver.engine->check_idle();
}

TEST(join_refuses_blocks_that_cannot_hold_the_kv) {
  Rig rig;
  SequenceSpec spec = spec_of(1, random_tokens(40, 4));
  CHECK_THROWS_WITH(rig.engine->join(spec, {0, 1, 2}), InvalidArgument, "output must end with the token");
  spec.output = {5};
  CHECK_THROWS_WITH(rig.engine->join(spec, {0, 1}), InvalidArgument, "2 blocks, 3 to 16 can hold the KV of 40 tokens");
}

}  // namespace
}  // namespace rtp_llm
