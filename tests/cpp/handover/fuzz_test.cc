// Every message that a peer or a router can send, with fields that no worker of this program would put there, between
// the events of a worker that does its part. Whatever comes: no contract breaks, nothing outside of a sequence's blocks
// is named, and when all is over nothing is held.
//
// RTP_FUZZ_MESSAGES says how many messages a machine gets (100,000; `make sanitize`: 500,000).
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "bench_worker.h"

namespace rtp_llm {
namespace {

int64_t messages_per_machine() {
  const char* asked = std::getenv("RTP_FUZZ_MESSAGES");
  return asked ? std::atoll(asked) : 100000;
}

// A sequence as the engine has it.
struct Running {
  Role role = Role::kAlone;
  int32_t tokens = 0;  // prompt and output so far
  std::vector<int32_t> blocks;
  int32_t computed = 0;
  int32_t position = 0;  // of the next output token
  bool scheduled = false, sampled = false, cancelled = false, told = false;
};

struct Fuzz : BenchWorker {
  explicit Fuzz(uint64_t seed) : random(seed) {}

  std::mt19937_64 random;
  WorkerKey stranger{"nobody", 9};
  std::map<RequestKey, Running> engine;
  std::multimap<WorkerKey, action::PushLayers> pushes;
  std::multimap<WorkerKey, std::pair<GrantId, uint64_t>> receives;  // by sender: grant, bytes
  std::vector<GrantId> granted;                                     // by this worker
  std::vector<WorkerKey> closing_send, closing_receive;
  int32_t next_block = 1000;

  // --- drawing
  int64_t below(int64_t end) { return static_cast<int64_t>(random() % static_cast<uint64_t>(end)); }
  bool chance(int percent) { return below(100) < percent; }
  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[below(static_cast<int64_t>(values.size()))];
  }
  // `right`, or what nobody would say.
  template <class T>
  T odd(T right) {
    if (chance(70)) return right;
    if constexpr (std::is_floating_point_v<T>) {
      using L = std::numeric_limits<T>;
      return pick<T>(
          {L::quiet_NaN(), L::infinity(), -L::infinity(), 0, -T{0}, -1, L::max(), L::denorm_min(), right * 2});
    } else {
      using L = std::numeric_limits<T>;
      return pick<T>({0, 1, static_cast<T>(-1), L::min(), L::max(), static_cast<T>(right + 1),
                      static_cast<T>(right - 1), static_cast<T>(random())});
    }
  }
  RequestKey key() {
    RequestKey key = key_of_attempt(static_cast<uint32_t>(1 + below(3)), static_cast<uint64_t>(1 + below(4)));
    if (chance(5)) key.router_epoch = odd(key.router_epoch);
    if (chance(5)) key.attempt = odd(key.attempt);
    if (chance(5)) key.choice = odd(key.choice);
    return key;
  }
  GrantId any_grant() {
    return odd(granted.empty() || chance(30)
                   ? GrantId{1}
                   : granted[static_cast<size_t>(below(static_cast<int64_t>(granted.size())))]);
  }
  message::SpecPtr spec() {
    auto made = std::make_shared<SequenceSpec>(
        *spec_of(key(), static_cast<int32_t>(below(20)), static_cast<int32_t>(below(3)), 16));
    made->sampling.max_tokens = odd(made->sampling.max_tokens);
    return made;
  }
  // What an engine says of a spec: the machines are never asked to run what it can't.
  static bool runs(const SequenceSpec& spec, size_t more) {
    return !spec.prompt.empty() && static_cast<int64_t>(spec.output.size() + more) < spec.sampling.max_tokens;
  }
  SampledToken token() {
    SampledToken token;
    token.position = odd(int32_t{0});
    token.token = odd(int32_t{9});
    token.logprob = odd(0.5f);
    if (chance(10)) token.top_logprobs.resize(static_cast<size_t>(below(100)));
    return token;
  }

  // --- what peers say
  message::FromReceiver from_receiver() {
    const RequestKey k = key();
    switch (below(6)) {
      case 0: return message::NoRoom{k, "full"};
      case 1: return message::PeerCommitted{k, odd(GrantId{1})};
      case 2: return message::Expired{k, odd(GrantId{1})};
      case 3: return message::BadChecksum{k, odd(GrantId{1}), random(), random()};
      case 4: return message::PeerFenced{k};
      default:
        return message::Granted{k, odd(GrantId{1 + static_cast<GrantId>(below(9))}),
                                odd(static_cast<int32_t>(4 * below(4))), odd(5.0)};
    }
  }
  event::FromSender from_sender() {
    event::FromSender event;
    event.sender = chance(90) ? peer : stranger;
    switch (below(4)) {
      case 0: {
        const message::SpecPtr wanted = spec();
        if (!runs(*wanted, 1)) event.invalid = "can't run here";
        event.body = message::Reserve{wanted, any_grant()};
        break;
      }
      case 1: event.body = message::Commit{key(), any_grant(), token(), odd(uint64_t{320}), odd(uint64_t{2})}; break;
      case 2: event.body = message::Abort{key(), any_grant()}; break;
      default: {
        message::SenderHeartbeat heartbeat;
        for (int64_t i = below(5); i > 0; --i) heartbeat.grants.push_back(any_grant());
        event.body = std::move(heartbeat);
      }
    }
    return event;
  }
  event::FromRouter from_any_router() {
    event::FromRouter event;
    event.router_epoch = chance(95) ? kRouter : random();
    switch (below(10)) {
      case 0: event.body = message::Cancel{key()}; break;
      case 1: event.body = message::Fence{key()}; break;
      case 2: {
        message::Attach attach;
        for (int64_t i = below(6); i > 0; --i)
          attach.entries.push_back({key(), odd(int32_t{0}), static_cast<message::AttachRole>(odd(uint8_t{1}))});
        event.body = std::move(attach);
        break;
      }
      default: {
        const message::SpecPtr wanted = spec();
        message::Submit submit{wanted, std::nullopt, ""};
        if (chance(80)) submit.receiver = chance(80) ? peer : chance(50) ? self : stranger;
        if (!runs(*wanted, 0)) event.invalid = message::Failed{wanted->key, "InvalidRequestError", "can't run", ""};
        event.body = std::move(submit);
        event.queued_tokens = odd(int64_t{0});
      }
    }
    return event;
  }
  // A message of the data plane.
  void message() {
    KvMessageHeader header;
    header.version = odd(uint8_t{1});
    header.kv_group = odd(uint8_t{0});
    header.first_layer = odd(static_cast<uint16_t>(2 * below(2)));
    header.num_layers = odd(uint16_t{2});
    header.receiver_epoch = odd(self.epoch);
    header.grant = any_grant();
    header.first_token = odd(static_cast<uint32_t>(4 * below(3)));
    header.tokens = odd(static_cast<uint32_t>(1 + below(8)));
    const uint64_t bytes = odd(uint64_t{header.tokens} * header.num_layers * 10);
    const WorkerKey& from = chance(90) ? peer : stranger;
    out.clear();
    const auto answer = handover.accept(from, header, bytes, now, out);
    perform();
    if (const auto* to = std::get_if<Destination>(&answer)) {
      REQUIRE(to->first_layer >= 0 && to->num_layers > 0 && to->first_layer + to->num_layers <= config.num_layers);
      REQUIRE(to->first_token >= 0 && to->first_token % config.block_tokens == 0 && to->tokens > 0);
      REQUIRE(static_cast<int32_t>(to->blocks.size()) == (to->tokens + config.block_tokens - 1) / config.block_tokens);
      for (int32_t block : to->blocks) REQUIRE(pool.granted.contains(block));
      receives.emplace(from, std::pair{to->grant, bytes});
    }
  }

  // --- what this worker's engine and data plane do
  void act(const Event& event) {
    post(event);
    perform();
  }
  void perform() {
    const Actions actions = std::exchange(out, {});
    REQUIRE(actions.size() < 1000);
    const auto deadline = handover.next_deadline();
    REQUIRE(!deadline || std::isfinite(*deadline));
    for (const Action& action : actions) std::visit([&](const auto& wanted) { perform(wanted); }, action);
  }
  void perform(const action::EnqueueSequence& wanted) {
    REQUIRE(runs(*wanted.spec, 0));
    const auto tokens = static_cast<int32_t>(wanted.spec->prompt.size() + wanted.spec->output.size());
    REQUIRE(engine.try_emplace(wanted.spec->key, Running{wanted.role, tokens}).second);
    engine[wanted.spec->key].position = static_cast<int32_t>(wanted.spec->output.size());
  }
  void perform(const action::JoinSequence& wanted) {
    const SequenceSpec& spec = *wanted.spec;
    REQUIRE(spec.output.back() >= 0 && spec.output.back() < config.vocab_size);
    const auto stored = static_cast<int32_t>(spec.prompt.size() + spec.output.size()) - 1;
    REQUIRE(static_cast<int32_t>(wanted.blocks.size()) == (stored + config.block_tokens - 1) / config.block_tokens);
    REQUIRE(engine.try_emplace(spec.key, Running{Role::kAlone, stored, wanted.blocks}).second);
    engine[spec.key].position = static_cast<int32_t>(spec.output.size());
  }
  void perform(const action::CancelSequence& wanted) {
    if (const auto found = engine.find(wanted.key); found != engine.end()) found->second.cancelled = true;
  }
  void perform(const action::ReleaseBlocks& wanted) {
    for (const auto& [to, push] : pushes) REQUIRE(push.key != wanted.key);
    engine.erase(wanted.key);
  }
  void perform(const action::PushLayers& wanted) {
    const Running& source = engine.at(wanted.key);
    const int64_t first = wanted.header.first_token, end = first + wanted.header.tokens;
    REQUIRE(wanted.header.tokens > 0 && first % config.block_tokens == 0 && end <= source.computed);
    REQUIRE(wanted.header.first_layer + wanted.header.num_layers <= config.num_layers);
    for (int64_t at = first; at < end; at += config.block_tokens)
      REQUIRE(wanted.blocks.at(static_cast<size_t>((at - first) / config.block_tokens)) ==
              source.blocks.at(static_cast<size_t>(at / config.block_tokens)));
    pushes.emplace(wanted.receiver, wanted);
  }
  void perform(const action::CloseEndpoint& wanted) {
    (wanted.direction == Direction::kSend ? closing_send : closing_receive).push_back(wanted.peer);
  }
  template <class Said>
  void perform(const Said&) {}

  void end_push(bool ok) {
    if (pushes.empty()) return;
    const auto at = std::next(pushes.begin(), below(static_cast<int64_t>(pushes.size())));
    const action::PushLayers push = at->second;
    pushes.erase(at);
    act(event::PushDone{push.key, push.header.grant, ok, 10u * push.header.tokens * push.header.num_layers, random()});
  }
  void end_receive(bool ok) {
    if (receives.empty()) return;
    const auto at = std::next(receives.begin(), below(static_cast<int64_t>(receives.size())));
    const auto [grant, bytes] = at->second;
    receives.erase(at);
    act(event::ReceiveDone{grant, ok, ok ? bytes : 0, 1});
  }
  void close_endpoints() {
    for (const WorkerKey& to : std::exchange(closing_send, {})) {
      while (pushes.contains(to)) {
        const auto at = pushes.find(to);
        const action::PushLayers push = at->second;
        pushes.erase(at);
        act(event::PushDone{push.key, push.header.grant, false, 0, 0});
      }
      act(event::EndpointClosed{to, Direction::kSend});
    }
    for (const WorkerKey& from : std::exchange(closing_receive, {})) {
      while (receives.contains(from)) {
        const auto at = receives.find(from);
        const GrantId grant = at->second.first;
        receives.erase(at);
        act(event::ReceiveDone{grant, false, 0, 0});
      }
      act(event::EndpointClosed{from, Direction::kReceive});
    }
  }
  // A joined sequence's blocks and slot are free.
  void leave(const RequestKey& k) {
    const Running sequence = engine.extract(k).mapped();
    if (sequence.role == Role::kSender || sequence.blocks.empty()) return;
    for (int32_t block : sequence.blocks) {
      REQUIRE(pool.referenced.erase(block) == 1);
      pool.free.insert(block);
    }
    ++pool.free_slots;
    act(event::RoomChanged{});
  }
  // A sender that was scheduled keeps its blocks until they are released.
  void end_cancelled() {
    std::vector<RequestKey> ended;
    for (auto& [k, sequence] : engine)
      if (sequence.cancelled && !std::exchange(sequence.told, true)) ended.push_back(k);
    for (const RequestKey& k : ended) {
      const auto found = engine.find(k);
      if (found == engine.end()) continue;
      if (found->second.role == Role::kAlone || !found->second.scheduled) leave(k);
      act(event::Finished{k, FinishReason::kCancelled});
    }
  }
  void step_engine() {
    if (engine.empty()) return;
    const auto at = std::next(engine.begin(), below(static_cast<int64_t>(engine.size())));
    const RequestKey k = at->first;
    Running& sequence = at->second;
    if (sequence.cancelled) return;
    if (sequence.role == Role::kAlone) {
      SampledToken sampled;
      sampled.position = sequence.position++;
      act(event::Output{k, sampled});
      if (!chance(30) || !engine.contains(k)) return;
      leave(k);
      act(event::Finished{k, FinishReason::kStop});
    } else if (!sequence.scheduled) {
      sequence.scheduled = true;
      for (int32_t i = 0; i < (sequence.tokens + 3) / 4; ++i) sequence.blocks.push_back(next_block++);
      sequence.computed = 0;
      act(event::Scheduled{k, sequence.blocks, sequence.tokens, 0});
    } else if (sequence.computed < sequence.tokens) {
      const int32_t first = sequence.computed;
      const auto rows = static_cast<int32_t>(1 + below(sequence.tokens - first));
      sequence.computed += rows;
      for (int layer : {0, 2})
        if (engine.contains(k)) act(event::LayersComputed{k, layer, 2, first, rows});
    } else if (!sequence.sampled) {
      sequence.sampled = true;
      SampledToken first;
      first.position = sequence.position;
      first.token = 9;
      if (chance(5)) first.finish = FinishReason::kStop;
      act(event::Prefilled{k, first});
    }
  }
  void work() {
    end_cancelled();
    switch (below(8)) {
      case 0: end_push(chance(90)); break;
      case 1: end_receive(chance(90)); break;
      case 2: close_endpoints(); break;
      case 3:
        now += static_cast<double>(below(3000)) / 1000;
        act(event::Tick{});
        break;
      case 4: act(event::HeartbeatDue{peer}); break;
      default: step_engine();
    }
    if (chance(1)) act(event::SenderLost{peer});
    if (chance(1)) act(event::ReceiverLost{peer, "gone"});
    if (chance(1)) act(event::EndpointFailed{peer, Direction::kSend});
  }
  void note_grants() {
    for (const auto& granted_now : all<message::Granted>()) granted.push_back(granted_now.grant);
  }

  // Nothing comes any more: each router expires, the rest runs out.
  void check_rest() {
    act(event::RouterLost{kRouter});
    for (int i = 0; i < 60; ++i) {
      now += 1;
      act(event::Tick{});
      end_cancelled();
      close_endpoints();
      while (!pushes.empty()) end_push(true);
      while (!receives.empty()) end_receive(true);
      for (size_t n = 0; n < 20; ++n) step_engine();
    }
    REQUIRE(handover.idle());
    CHECK(engine.empty());
    CHECK_EQ(pool.free.size(), 6u);
    CHECK_EQ(pool.free_slots, 64);
  }
};

// Walks of 200 messages until there were enough.
template <class Say>
void fuzz(Say say) {
  const int64_t messages = messages_per_machine();
  for (int64_t seed = 0; seed * 200 < messages; ++seed) {
    Fuzz worker(static_cast<uint64_t>(seed));
    try {
      for (int i = 0; i < 200; ++i) {
        say(worker);
        for (int64_t n = worker.below(4); n > 0; --n) worker.work();
      }
      worker.check_rest();
    } catch (...) {
      std::fprintf(stderr, "seed %lld\n", static_cast<long long>(seed));
      throw;
    }
  }
}

TEST(a_sender_survives_whatever_receivers_and_routers_say) {
  fuzz([](Fuzz& worker) {
    if (worker.chance(25)) {
      worker.act(worker.from_any_router());
    } else {
      worker.act(event::FromReceiver{worker.chance(95) ? worker.peer : worker.stranger, worker.from_receiver()});
    }
  });
}

TEST(a_receiver_survives_whatever_senders_and_routers_say) {
  fuzz([](Fuzz& worker) {
    if (worker.chance(40)) {
      worker.message();
    } else if (worker.chance(10)) {
      worker.act(worker.from_any_router());
    } else {
      worker.post(worker.from_sender());
      worker.note_grants();
      worker.perform();
    }
  });
}

}  // namespace
}  // namespace rtp_llm
