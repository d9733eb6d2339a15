#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "engine/sampling.h"
#include "kv/kv_layout.h"

namespace rtp_llm {

namespace {

int priority_of(const Sequence* sequence) { return sequence->spec.priority; }

// Who is served first.
bool before(const Sequence* a, const Sequence* b) {
  return std::pair(a->spec.priority, a->arrival) < std::pair(b->spec.priority, b->arrival);
}

}  // namespace

Scheduler::Scheduler(const EngineConfig& config, BlockPool& pool, SlotPool& slots, bool forms_equal)
    : config_(config), pool_(pool), slots_(slots), forms_equal_(forms_equal) {
  for (int slot = config.max_num_seqs - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  running_.reserve(config.max_num_seqs);
  decodes_.reserve(config.max_num_seqs);
  plan_.chunks.reserve(config.max_num_seqs);
  plan_.admitted.reserve(config.max_num_seqs);
}

void Scheduler::add(Sequence& sequence) {
  sequence.arrival = ++num_arrivals_;
  waiting_.insert(std::ranges::upper_bound(waiting_, sequence.spec.priority, {}, priority_of), &sequence);
}

void Scheduler::join(Sequence& sequence) {
  sequence.arrival = ++num_arrivals_;
  sequence.holds_slot = true;
  joined_.push_back(&sequence);
}

const Schedule& Scheduler::schedule(const StepCost& cost) {
  plan_.chunks.clear();
  plan_.admitted.clear();
  plan_.announced = nullptr;
  plan_.decode_rows = 0;
  preempted_ = false;
  words_left_ = max_token_words(config_);
  start_joined();
  const bool solo_first = !was_solo_;
  was_solo_ = solo_first && schedule_solo();
  if (was_solo_) return plan_;
  schedule_others(cost);
  if (!solo_first && plan_.empty()) was_solo_ = schedule_solo();
  return plan_;
}

void Scheduler::schedule_others(const StepCost& cost) {
  schedule_decodes();
  int64_t budget = prefill_budget(cost);
  continue_prefills(budget);
  if (plan_.empty()) words_left_ = max_token_words(config_);  // whoever was to bring some was preempted
  if (!preempted_ || plan_.empty()) admit(budget);
}

// ---- Solo

// A step of one solo sequence, if one can have it now: of the first that runs, else of the one that stands first in the
// queue.
bool Scheduler::schedule_solo() {
  int64_t budget = config_.max_num_batched_tokens;
  for (Sequence* sequence : running_) {
    if (!sequence->solo() || sequence->launched_to_its_end()) continue;
    if (!sequence->decoding()) {
      add_prefill(*sequence, budget);
    } else if (grow(*sequence)) {
      add_decode(*sequence);
    }
    return !plan_.empty();
  }
  if (waiting_.empty() || !waiting_.front()->solo()) return false;
  Sequence& sequence = *waiting_.front();
  if (sequence.notice == Sequence::Notice::kNone) {
    sequence.notice = Sequence::Notice::kSaid;
    plan_.announced = &sequence;
  }
  return sequence.notice == Sequence::Notice::kOver && begin(sequence, budget);
}

bool Scheduler::ended(const Chunk& chunk) {
  Sequence& sequence = *chunk.sequence;
  --sequence.steps_in_flight;
  sequence.num_pending -= chunk.samples;
  if (chunk.num_preemptions != sequence.num_preemptions) return false;
  sequence.num_computed += chunk.rows;
  return true;
}

void Scheduler::finish(Sequence& sequence) {
  leave(sequence);
  give_back_slot(sequence);
  give_back_blocks(sequence);
  sequence.state = Sequence::State::kEnding;
}

void Scheduler::hold(Sequence& sequence) {
  leave(sequence);
  give_back_slot(sequence);
  sequence.state = Sequence::State::kHeld;
}

int64_t Scheduler::queued_tokens() const {
  int64_t tokens = 0;
  for (const Sequence* sequence : waiting_) tokens += sequence->num_unlaunched();
  for (const Sequence* sequence : running_)
    if (!sequence->decoding()) tokens += sequence->num_unlaunched();
  return tokens;
}

int Scheduler::num_without_slot() const {
  return static_cast<int>(
      std::ranges::count_if(waiting_, [](const Sequence* sequence) { return !sequence->holds_slot; }));
}

BlockDemand Scheduler::demand() const {
  BlockDemand demand;
  const auto add = [&](const Sequence& sequence) {
    // The last token's KV is never stored.
    const int most = blocks_for(sequence.max_len - 1, config_.block_tokens);
    demand.blocks += std::clamp(most - static_cast<int>(sequence.blocks.size()), 0, BlockDemand::kMaxGrowth);
    ++demand.sequences;
  };
  for (const Sequence* sequence : running_) add(*sequence);
  for (const Sequence* sequence : joined_) add(*sequence);
  // Who was preempted ran already and takes its blocks back before anything is granted. They stand in front of their
  // priority. So does the first of those that have never run, once it was refused: else each block that becomes free
  // could be granted before there are enough for it.
  int left = num_preempted_waiting_ + (claims_ != nullptr);
  for (auto next = waiting_.begin(); left > 0 && next != waiting_.end(); ++next) {
    const Sequence* sequence = *next;
    if (!sequence->admitted_before && sequence != claims_) continue;
    --left;
    demand.blocks += blocks_for(sequence->len(), config_.block_tokens);
    ++demand.sequences;
  }
  return demand;
}

// ---- Decodes

void Scheduler::start(Sequence& sequence) {
  check(sequence.holds_slot && !free_slots_.empty(), "sequence ", sequence.spec.key.str(), " starts without a slot, ",
        free_slots_.size(), " of ", config_.max_num_seqs, " are free");
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  sequence.num_bound_blocks = -1;
  sequence.state = Sequence::State::kRunning;
  running_.push_back(&sequence);
}

void Scheduler::start_joined() {
  for (Sequence* sequence : joined_) start(*sequence);
  joined_.clear();
}

void Scheduler::schedule_decodes() {
  decodes_.clear();
  for (Sequence* sequence : running_) {
    if (!sequence->decoding() || sequence->launched_to_its_end() || sequence->solo() || !can_bind(*sequence)) continue;
    bind(*sequence);
    decodes_.push_back(sequence);
  }
  // All blocks first: who grew may still be preempted for one that is served before it.
  std::ranges::sort(decodes_, before);
  for (Sequence* sequence : decodes_) grow(*sequence);
  for (Sequence* sequence : decodes_) {
    if (sequence->state == Sequence::State::kRunning) add_decode(*sequence);
  }
}

void Scheduler::add_decode(Sequence& sequence) {
  add_chunk({.sequence = &sequence,
             .first_token = sequence.num_launched,
             .rows = 1,
             .form = Form::kDecode,
             .decode = true,
             .samples = true,
             .num_preemptions = sequence.num_preemptions});
  ++plan_.decode_rows;
}

void Scheduler::add_chunk(const Chunk& chunk) {
  Sequence& sequence = *chunk.sequence;
  sequence.num_launched += chunk.rows;
  sequence.num_pending += chunk.samples;
  ++sequence.steps_in_flight;
  plan_.chunks.push_back(chunk);
}

// Gives the sequence the block for its last token, if it lacks it. False: it is not running (any more).
bool Scheduler::grow(Sequence& sequence) {
  const int needed = blocks_for(sequence.planned_len(), config_.block_tokens);
  while (sequence.state == Sequence::State::kRunning && static_cast<int>(sequence.blocks.size()) < needed) {
    if (const auto block = pool_.allocate_one_for_step()) {
      sequence.blocks.push_back(*block);
      continue;
    }
    Sequence* last = nullptr;
    for (Sequence* candidate : running_)
      if (candidate->role != Role::kSender && (last == nullptr || before(last, candidate))) last = candidate;
    // A sender that resumes may decode; it owns the blocks for all its tokens since its admission.
    if (last == nullptr)
      throw Error(concat("sequence ", sequence.spec.key.str(), " needs a block and nobody may be preempted"));
    preempt(*last);
  }
  return sequence.state == Sequence::State::kRunning;
}

void Scheduler::preempt(Sequence& sequence) {
  leave(sequence);
  give_back_blocks(sequence);
  sequence.state = Sequence::State::kWaiting;
  sequence.num_launched = sequence.num_computed = 0;
  sequence.num_bound_blocks = -1;
  ++sequence.num_preemptions;
  waiting_.insert(std::ranges::lower_bound(waiting_, sequence.spec.priority, {}, priority_of), &sequence);
  ++num_preempted_waiting_;
  ++num_preemptions_;
  preempted_ = true;
}

// ---- Prefills

int64_t Scheduler::prefill_budget(const StepCost& cost) const {
  if (plan_.decode_rows == 0) return config_.max_num_batched_tokens;
  const double left_s = config_.itl_target_s - cost.decode_s(plan_.decode_rows);
  const int64_t rows = std::min(config_.max_num_batched_tokens - plan_.decode_rows, cost.prefill_rows_within(left_s));
  return std::max(rows, std::min(kMinPrefillRows, config_.max_num_batched_tokens));
}

void Scheduler::continue_prefills(int64_t& budget) {
  for (Sequence* sequence : running_)
    if (budget > 0 && !sequence->decoding() && !sequence->solo()) add_prefill(*sequence, budget);
}

// Nobody overtakes who stands first.
void Scheduler::admit(int64_t& budget) {
  while (budget > 0 && !waiting_.empty() && !waiting_.front()->solo())
    if (!begin(*waiting_.front(), budget)) return;
}

// Admits who stands first in the queue, if there is room.
bool Scheduler::begin(Sequence& sequence, int64_t& budget) {
  // Preempted while a step samples its next token: that one comes first.
  if (sequence.num_pending > 0 || !can_bind(sequence)) return false;
  const bool was_preempted = sequence.admitted_before;
  if (!take_slot(sequence) || !take_blocks(sequence)) {
    if (!was_preempted) claims_ = &sequence;
    return false;
  }
  num_preempted_waiting_ -= was_preempted;
  if (claims_ == &sequence) claims_ = nullptr;
  waiting_.pop_front();
  start(sequence);
  bind(sequence);
  plan_.admitted.push_back(&sequence);
  add_prefill(sequence, budget);
  return true;
}

// Whether this step can carry what the sequence says of tokens. One alone always fits.
bool Scheduler::can_bind(const Sequence& sequence) const {
  return sequence.num_bound_blocks >= 0 || num_token_words(sequence.spec.sampling, sequence.len()) <= words_left_;
}

void Scheduler::bind(const Sequence& sequence) {
  if (sequence.num_bound_blocks < 0) words_left_ -= num_token_words(sequence.spec.sampling, sequence.len());
}

// It keeps the slot while it waits for blocks.
bool Scheduler::take_slot(Sequence& sequence) {
  if (!sequence.holds_slot) sequence.holds_slot = slots_.admit(sequence.spec.key.router_epoch);
  return sequence.holds_slot;
}

// Prefix hits and fresh blocks for all tokens, or nothing. At least one token is left to compute.
bool Scheduler::take_blocks(Sequence& sequence) {
  const int total = blocks_for(sequence.len(), config_.block_tokens);
  const int most_hits = config_.enable_prefix_caching ? (sequence.len() - 1) / config_.block_tokens : 0;
  const auto hashes = std::span(sequence.hasher.hashes()).first(most_hits);
  const auto fits = [&](int hits) { return pool_.can_allocate_for_step(total - hits + num_running()); };
  if (!fits(pool_.count_cached(hashes))) return false;  // without touching the order of eviction
  const std::vector<int32_t> blocks = pool_.match(hashes, most_hits);
  const int hits = static_cast<int>(blocks.size());
  const auto fresh = fits(hits) ? pool_.allocate_for_step(total - hits) : std::nullopt;
  if (!fresh) {
    pool_.release(blocks);
    return false;
  }
  sequence.blocks.assign(blocks.begin(), blocks.end());  // into memory for all that it may ever have
  sequence.blocks.insert(sequence.blocks.end(), fresh->begin(), fresh->end());
  sequence.num_launched = sequence.num_computed = hits * config_.block_tokens;
  sequence.num_clean_blocks = sequence.num_offered_blocks = hits;
  if (!sequence.admitted_before) sequence.num_cached = std::min(sequence.num_computed, sequence.num_prompt);
  sequence.admitted_before = true;
  num_hit_tokens_ += sequence.num_computed;
  return true;
}

// A chunk of at most `budget` rows; one that isn't the last ends at a block border if it reaches one.
void Scheduler::add_prefill(Sequence& sequence, int64_t& budget) {
  const int first = sequence.num_launched;
  const bool in_prompt = first < sequence.num_prompt;
  // Where forms differ, a chunk is of one form.
  const int end = forms_equal_ || !in_prompt ? sequence.len() : sequence.num_prompt;
  int rows = static_cast<int>(std::min<int64_t>(end - first, budget));
  const int border = (first + rows) / config_.block_tokens * config_.block_tokens;
  if (first + rows < end && border > first) rows = border - first;
  add_chunk({.sequence = &sequence,
             .first_token = first,
             .rows = rows,
             .form = forms_equal_ || in_prompt ? Form::kPrefill : Form::kDecode,
             .decode = false,
             .samples = first + rows == sequence.len(),
             .num_preemptions = sequence.num_preemptions});
  budget -= rows;
}

// ---- Leaving

// Out of every list, off the device. Its claim to a slot and its blocks stay.
void Scheduler::leave(Sequence& sequence) {
  if (std::erase(waiting_, &sequence) > 0 && sequence.admitted_before) --num_preempted_waiting_;
  std::erase(joined_, &sequence);
  std::erase(running_, &sequence);
  if (claims_ == &sequence) {
    claims_ = nullptr;
    slots_.withdraw_claim();
  }
  if (sequence.slot >= 0) free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
}

void Scheduler::give_back_slot(Sequence& sequence) {
  if (sequence.holds_slot) slots_.give_back(sequence.spec.key.router_epoch);
  sequence.holds_slot = false;
}

void Scheduler::give_back_blocks(Sequence& sequence) {
  pool_.release(sequence.blocks);
  sequence.blocks.clear();
}

}  // namespace rtp_llm
