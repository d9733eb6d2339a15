// Scheduler: which rows of which sequences the next step computes, and who owns blocks and slots.
// Pure: no device, no clock, no threads; BlockPool is ids and counts.
//
// Order of a step: decodes first (one row each, always all), then chunks of running prefills, then
// admissions, least priority value first, of equal ones first come, first served. A sequence is admitted when it has a
// slot and can own the blocks for all its tokens so far; while others run, one block for each of them is left over.
// When a decode finds no block, of those that are no senders the one of the greatest priority value, of equal ones the
// latest arrival, gives its blocks back (to the prefix cache) and waits in front of all of its priority, with its slot.
//
// A solo sequence's steps are its own, and every other step is the others'. Before its first one it is named once
// (Schedule::announced), and then waits, at the front of the queue, until it is told that the notice is out.
//
// A schedule may be asked for before the step of the last one has ended: it counts what that step computes and samples.
// Blocks that were released since can be taken for the new step, which runs behind it.
//
// What a sequence says of tokens is carried by the first step that has rows of it, once it has a slot; where a step
// can't carry more, it waits for the next one.
//
// Slots and blocks are also granted, on another thread. Who stands first in the queue and was refused
// once goes before grants: the next free slot is its own, and its blocks count in `demand`. A joined
// sequence brought its slot along, so it runs in the next step.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "engine/engine_config.h"
#include "engine/sequence.h"
#include "engine/step_cost.h"
#include "kv/block_pool.h"
#include "kv/slot_pool.h"

namespace rtp_llm {

// Rows [first_token, first_token + rows) of a sequence's tokens.
struct Chunk {
  Sequence* sequence;
  int first_token;
  int rows;
  Form form;
  bool decode;          // the row's token is the slot's last one
  bool samples;         // ends with the last token so far
  int num_preemptions;  // the sequence's, when the rows were scheduled
};

struct Schedule {
  std::vector<Chunk> chunks;        // decodes first
  std::vector<Sequence*> admitted;  // in this step, for the first time or again
  Sequence* announced = nullptr;    // a solo one, the next to begin: its notice is kSaid, the caller makes it kOver
  int decode_rows = 0;

  bool empty() const { return chunks.empty(); }
};

class Scheduler {
 public:
  // While others decode, prefill gets at least so many rows of a step.
  static constexpr int64_t kMinPrefillRows = 16;

  // REQUIRES: config is checked. `forms_equal`: Ops::forms_equal().
  Scheduler(const EngineConfig& config, BlockPool& pool, SlotPool& slots, bool forms_equal);

  void add(Sequence& sequence);
  // Has blocks and KV for all tokens but the last. REQUIRES: it holds a slot (SlotPool::grant).
  void join(Sequence& sequence);
  // The next step, valid until the next call. Counts it as launched.
  const Schedule& schedule(const StepCost& cost);
  // The chunk's step has ended. False: its rows are in no block of the sequence, which was preempted since the launch.
  bool ended(const Chunk& chunk);
  // Is over, wherever it was: slot and blocks are given back.
  void finish(Sequence& sequence);
  // A sender that needs no more steps: its slot is free, its blocks stay until finish().
  void hold(Sequence& sequence);

  int num_waiting() const { return static_cast<int>(waiting_.size() + joined_.size()); }
  int num_without_slot() const;  // of the waiting
  int num_running() const { return static_cast<int>(running_.size()); }
  // Tokens to compute before the next output tokens of all.
  int64_t queued_tokens() const;
  BlockDemand demand() const;
  uint64_t num_preemptions() const { return num_preemptions_; }
  uint64_t num_hit_tokens() const { return num_hit_tokens_; }

 private:
  void start(Sequence& sequence);
  void start_joined();
  bool schedule_solo();
  void schedule_others(const StepCost& cost);
  void schedule_decodes();
  void add_decode(Sequence& sequence);
  bool grow(Sequence& sequence);
  void preempt(Sequence& sequence);
  void continue_prefills(int64_t& budget);
  void admit(int64_t& budget);
  bool begin(Sequence& sequence, int64_t& budget);
  bool can_bind(const Sequence& sequence) const;
  void bind(const Sequence& sequence);
  bool take_slot(Sequence& sequence);
  bool take_blocks(Sequence& sequence);
  int64_t prefill_budget(const StepCost& cost) const;
  void add_prefill(Sequence& sequence, int64_t& budget);
  void add_chunk(const Chunk& chunk);
  void leave(Sequence& sequence);
  void give_back_slot(Sequence& sequence);
  void give_back_blocks(Sequence& sequence);

  const EngineConfig& config_;
  BlockPool& pool_;
  SlotPool& slots_;
  const bool forms_equal_;

  std::deque<Sequence*> waiting_;   // by priority
  std::deque<Sequence*> joined_;    // run in the next step
  std::vector<Sequence*> running_;  // in order of admission
  std::vector<int> free_slots_;
  std::vector<Sequence*> decodes_;  // of this step
  Schedule plan_;
  int num_preempted_waiting_ = 0;
  bool preempted_ = false;            // in this step
  int64_t words_left_ = 0;            // about tokens, that this step can carry yet
  bool was_solo_ = false;             // the last step
  const Sequence* claims_ = nullptr;  // stood first in the queue and was refused slot or blocks
  uint64_t num_arrivals_ = 0;
  uint64_t num_preemptions_ = 0;
  uint64_t num_hit_tokens_ = 0;
};

}  // namespace rtp_llm
