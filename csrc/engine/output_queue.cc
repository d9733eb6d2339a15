#include "engine/output_queue.h"

#include <iterator>
#include <utility>

namespace rtp_llm {

namespace {

template <class T>
void move_to(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), std::move_iterator(from.begin()), std::move_iterator(from.end()));
  from.clear();
}

}  // namespace

void OutputQueue::publish(TokenColumns& columns) {
  if (columns.key.empty()) return;
  bool was_empty;
  {
    std::lock_guard lock(mutex_);
    was_empty = columns_.key.empty();
    move_to(columns_.key, columns.key);
    move_to(columns_.position, columns.position);
    move_to(columns_.token, columns.token);
    move_to(columns_.logprob, columns.logprob);
    move_to(columns_.finish, columns.finish);
    move_to(columns_.num_cached_tokens, columns.num_cached_tokens);
    move_to(columns_.top_logprobs, columns.top_logprobs);
  }
  if (was_empty) notify();
}

TokenColumns OutputQueue::take() {
  std::lock_guard lock(mutex_);
  return std::exchange(columns_, {});
}

}  // namespace rtp_llm
