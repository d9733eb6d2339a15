// A worker on the bench: its Handover, a pool of numbered blocks, a clock that tests move, and what
// the last event made it do.
#pragma once

#include <memory>
#include <set>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "check.h"
#include "handover/contract.h"
#include "handover/handover.h"

namespace rtp_llm {

struct BenchPool : GrantPool {
  std::set<int32_t> free, granted, quarantined, referenced;
  int32_t prefix_blocks = 0;  // of the next grant
  int32_t block_tokens = 4;
  int32_t free_slots = 64;
  mutable int wants = 0;  // how often one was worked out

  explicit BenchPool(int32_t blocks) {
    for (int32_t block = 0; block < blocks; ++block) free.insert(block);
  }
  Want want(std::shared_ptr<const SequenceSpec> spec) const override {
    ++wants;
    return {std::move(spec), 0, 0, {}};
  }
  std::optional<Reservation> grant(const Want& want) override {
    const auto tokens = static_cast<int32_t>(want.spec->prompt.size() + want.spec->output.size());
    const int32_t count = (tokens + block_tokens - 1) / block_tokens;
    if (static_cast<int32_t>(free.size()) < count || free_slots == 0) return std::nullopt;
    --free_slots;
    Reservation reservation{{}, prefix_blocks};
    for (int32_t i = 0; i < count; ++i) {
      const int32_t block = *free.begin();
      free.erase(free.begin());
      (i < prefix_blocks ? referenced : granted).insert(block);
      reservation.blocks.push_back(block);
    }
    return reservation;
  }
  void join(const Reservation& reservation) override { move(reservation, granted, referenced); }
  void quarantine(const Reservation& reservation) override {
    ++free_slots;
    for (int32_t i = 0; i < reservation.prefix_blocks; ++i) {
      referenced.erase(reservation.blocks[static_cast<size_t>(i)]);
      free.insert(reservation.blocks[static_cast<size_t>(i)]);
    }
    move(reservation, granted, quarantined);
  }
  void free_quarantined(const Reservation& reservation) override { move(reservation, quarantined, free); }

 private:
  static void move(const Reservation& reservation, std::set<int32_t>& from, std::set<int32_t>& to) {
    for (size_t i = static_cast<size_t>(reservation.prefix_blocks); i < reservation.blocks.size(); ++i) {
      REQUIRE(from.erase(reservation.blocks[i]) == 1);
      to.insert(reservation.blocks[i]);
    }
  }
};

// 4 layers in groups of 2, blocks of 4 tokens, 10 bytes a token and layer.
inline HandoverConfig bench_config() {
  HandoverConfig config;
  config.num_layers = 4;
  config.layers_per_message = 2;
  config.block_tokens = 4;
  config.token_layer_bytes = 10;
  config.max_push_tokens = 8;
  config.vocab_size = 100;
  return config;
}

inline constexpr uint64_t kRouter = 77;
inline RequestKey key_of_attempt(uint32_t attempt, uint64_t request = 1) { return {kRouter, request, 0, attempt}; }

inline message::SpecPtr spec_of(const RequestKey& key, int32_t prompt_tokens = 8, int32_t output_tokens = 0,
                                int32_t max_tokens = 16) {
  auto spec = std::make_shared<SequenceSpec>();
  spec->key = key;
  spec->prompt.assign(static_cast<size_t>(prompt_tokens), 5);
  spec->output.assign(static_cast<size_t>(output_tokens), 6);
  spec->sampling.max_tokens = max_tokens;
  return spec;
}

struct BenchWorker {
  WorkerKey self{"here", 1};
  WorkerKey peer{"there", 2};
  HandoverConfig config;
  BenchPool pool{6};
  Handover handover{self, config, pool};
  Seconds now = 100;
  Actions out;  // of the last event

  explicit BenchWorker(const HandoverConfig& given = bench_config()) : config(given) {
    post(event::RouterConnected{kRouter});
  }

  void post(const Event& event) {
    out.clear();
    handover.handle(event, now, out);
  }
  void advance(Seconds seconds) {
    now += seconds;
    post(event::Tick{});
  }
  // All actions of this type; of a message: that were sent to anyone.
  template <typename T>
  std::vector<T> all() const {
    std::vector<T> found;
    for (const Action& action : out) {
      std::visit(
          [&](const auto& held) {
            using A = std::decay_t<decltype(held)>;
            if constexpr (std::is_same_v<A, T>) {
              found.push_back(held);
            } else if constexpr (requires { held.body; }) {
              std::visit(
                  [&](const auto& body) {
                    if constexpr (std::is_same_v<std::decay_t<decltype(body)>, T>) found.push_back(body);
                  },
                  held.body);
            }
          },
          action);
    }
    return found;
  }
  template <typename T>
  bool did() const {
    return !all<T>().empty();
  }
  template <typename T>
  T only() const {
    const std::vector<T> found = all<T>();
    REQUIRE(found.size() == 1);
    return found.front();
  }
  void from_router(message::FromRouter body) {
    event::FromRouter event;
    event.router_epoch = kRouter;
    event.body = std::move(body);
    post(event);
  }
  std::optional<SenderState> sends(const RequestKey& key) const { return handover.sender().state(key); }
  std::optional<ReceiverState> receives(const RequestKey& key) const { return handover.receiver().state(key); }
};

}  // namespace rtp_llm
