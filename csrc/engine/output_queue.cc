#include "engine/output_queue.h"

#include <utility>

namespace rtp_llm {

namespace {

template <class T>
void move_to(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
  from.clear();
}

template <class T>
void reserve_as(std::vector<T>& to, const std::vector<T>& from) {
  to.reserve(from.capacity());
}

}  // namespace

void OutputQueue::publish(TokenColumns& columns) {
  if (columns.empty()) return;
  bool was_empty;
  {
    std::lock_guard lock(mutex_);
    was_empty = columns_.empty();
    move_to(columns_.key, columns.key);
    move_to(columns_.position, columns.position);
    move_to(columns_.token, columns.token);
    move_to(columns_.logprob, columns.logprob);
    move_to(columns_.finish, columns.finish);
    move_to(columns_.num_cached_tokens, columns.num_cached_tokens);
    move_to(columns_.times, columns.times);
    move_to(columns_.num_top_logprobs, columns.num_top_logprobs);
    move_to(columns_.top_logprobs, columns.top_logprobs);
    move_to(columns_.started, columns.started);
  }
  if (was_empty) notify();
}

TokenColumns OutputQueue::take() {
  TokenColumns taken;
  std::lock_guard lock(mutex_);
  reserve_as(taken.key, columns_.key);
  reserve_as(taken.position, columns_.position);
  reserve_as(taken.token, columns_.token);
  reserve_as(taken.logprob, columns_.logprob);
  reserve_as(taken.finish, columns_.finish);
  reserve_as(taken.num_cached_tokens, columns_.num_cached_tokens);
  reserve_as(taken.times, columns_.times);
  reserve_as(taken.num_top_logprobs, columns_.num_top_logprobs);
  reserve_as(taken.top_logprobs, columns_.top_logprobs);
  std::swap(taken, columns_);
  return taken;
}

}  // namespace rtp_llm
