// A sender's and a receiver's KvTransfer, each with an engine that only has a pool: the test is both engines and
// carries what the sessions would.
#include <poll.h>

#include <atomic>
#include <thread>

#include "check.h"
#include "pool_only.h"
#include "station.h"
#include "transfer/kv_transfer.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

constexpr uint64_t kRouter = 77;
const RequestKey kKey{.router_epoch = kRouter, .request = 1};

// The CPU with a stream that is as far as the test says.
class LateDevice : public Device {
 public:
  std::string backend() const override { return cpu().backend(); }
  std::string isa() const override { return cpu().isa(); }
  Ops& ops() override { return cpu().ops(); }
  bool runs_behind() const override { return true; }
  bool host_reaches_memory() const override { return true; }
  Buffer allocate(int64_t bytes, const std::string& tag) override { return cpu().allocate(bytes, tag); }
  Buffer allocate_shareable(int64_t bytes, const std::string& tag) override {
    return cpu().allocate_shareable(bytes, tag);
  }
  Buffer allocate_pinned(int64_t bytes, const std::string& tag) override { return cpu().allocate_pinned(bytes, tag); }
  std::vector<Allocation> allocations() const override { return cpu().allocations(); }
  void copy(void* to, const void* from, int64_t bytes) override { cpu().copy(to, from, bytes); }
  void zero(void* at, int64_t bytes) override { cpu().zero(at, bytes); }
  void copy_async(void* to, const void* from, int64_t bytes) override { cpu().copy_async(to, from, bytes); }
  StreamEvent record() override { return cpu().record(); }
  bool done(StreamEvent event) override { return event.number <= last_done; }
  void wait(StreamEvent) override {}
  double seconds_between(StreamEvent, StreamEvent) override { return 0; }
  void synchronize() override {}
  double read_rate(int64_t bytes, int rounds) override { return cpu().read_rate(bytes, rounds); }

  std::atomic<uint64_t> last_done = 0;
};

struct Worker {
  Worker(WorkerKey self, Device& device) : engine(64), transfer(device, engine, std::move(self), config()) {
    transfer.start();
    transfer.post(event::RouterConnected{kRouter});
  }
  static KvTransferConfig config() {
    KvTransferConfig config;
    config.transport.mode = TransportMode::kTcp;
    config.times = unhurried();
    config.max_queued_tokens = 100;
    return config;
  }
  int asked(const std::string& call) const { return static_cast<int>(std::ranges::count(engine.calls(), call)); }
  std::vector<TracePoint> points() {
    std::vector<TracePoint> points;
    for (const TraceEntry& entry : transfer.trace(kKey)) points.push_back(entry.point);
    return points;
  }

  PoolOnly engine;
  KvTransfer transfer;
  std::vector<message::ToRouter> to_router;
  std::vector<std::string> met;
};

struct Pair {
  Pair() : s({"s", 1}, device), r({"r", 2}, cpu()) {}

  void from_router(Worker& worker, message::FromRouter body) {
    event::FromRouter from;
    from.router_epoch = kRouter;
    from.body = std::move(body);
    worker.transfer.post(from);
  }
  // A request of 8 prompt tokens and 2 so far that goes from S to R.
  void submit(int logprobs = 1) {
    SequenceSpec spec = prompt_of(8, 16);
    spec.key = kKey;
    spec.output = {5, 6};
    spec.sampling.logprobs = logprobs;
    from_router(s, message::Submit{std::make_shared<const SequenceSpec>(spec), r.transfer.self(), "r:1"});
    until([&] { return s.asked("add 1") == 1; });
  }
  // S's engine has the first block in its cache.
  void schedule() {
    blocks = s.engine.block_pool().allocate(3).value();
    for (size_t i = 0; i < blocks.size(); ++i) {
      const auto bytes = s.engine.bytes_of(blocks[i]);
      for (size_t j = 0; j < bytes.size(); ++j) bytes[j] = pattern(i, j);
    }
    s.engine.listener->on_scheduled(kKey, blocks, 10, 4);
  }
  void computed(int first_token, int tokens, uint64_t ready = 0) {
    s.engine.listener->on_layers_computed({.key = kKey,
                                           .first_layer = 0,
                                           .num_layers = 1,
                                           .first_token = first_token,
                                           .tokens = tokens,
                                           .ready = {ready}});
  }
  void prefilled() { s.engine.listener->on_prefilled(kKey, 17, -0.5f, {{17, -0.5f}}, FinishReason::kNone); }

  void until(const std::function<bool()>& holds) {
    const double end = now_s() + kHangS;
    while (!holds()) {
      REQUIRE(now_s() < end);
      carry();
    }
  }

  LateDevice device;
  Worker s, r;
  std::vector<int32_t> blocks;

 private:
  void carry() {
    pollfd ready[2] = {{s.transfer.fd(), POLLIN, 0}, {r.transfer.fd(), POLLIN, 0}};
    poll(ready, 2, 2);
    for (Worker* from : {&s, &r}) {
      Worker& to = from == &s ? r : s;
      for (Outgoing& one : from->transfer.take()) {
        if (auto* body = std::get_if<outgoing::ToReceiver>(&one))
          to.transfer.post(event::FromSender{from->transfer.self(), body->body});
        if (auto* body = std::get_if<outgoing::ToSender>(&one))
          to.transfer.post(event::FromReceiver{from->transfer.self(), body->body});
        if (auto* body = std::get_if<outgoing::ToRouter>(&one)) from->to_router.push_back(body->body);
        if (auto* meet = std::get_if<outgoing::Meet>(&one))
          from->met.push_back(meet->receiver.id + " at " + meet->address);
        if (std::holds_alternative<outgoing::WantEndpoint>(one))
          from->transfer.connect(to.transfer.self(), to.transfer.address(), to.transfer.expect(from->transfer.self()));
      }
    }
  }
};

}  // namespace

TEST(a_handover_from_submit_to_join_is_told_traced_and_counted_on_both_sides) {
  Pair two;
  two.submit();
  two.schedule();
  two.until([&] { return !two.s.met.empty(); });
  CHECK_EQ(two.s.met, std::vector<std::string>{"r at r:1"});
  two.computed(4, 6);
  two.prefilled();
  two.until([&] { return two.r.asked("join 1") == 1 && two.s.asked("release 1") == 1; });

  REQUIRE(two.s.to_router.size() == 1);
  const auto* first = std::get_if<message::Outputs>(&two.s.to_router[0]);
  REQUIRE(first != nullptr && first->tokens.size() == 1);
  CHECK_EQ(first->tokens[0].position, 2);  // behind the tokens so far
  CHECK_EQ(first->tokens[0].token, 17);
  CHECK_EQ(first->tokens[0].num_cached_tokens, 4);
  const auto [queued, prefill] = first->tokens[0].times;
  CHECK(queued > 0 && prefill > 0 && queued + prefill < kHangS);
  using enum TracePoint;
  CHECK_EQ(two.s.points(),
           (std::vector{kScheduled, kLayersComputed, kFirstToken, kGranted, kPosted, kSent, kCommitSent, kCommitted}));
  CHECK_EQ(two.r.points(), (std::vector{kGranted, kAccepted, kReceived, kCommitted}));

  const KvTransferCounts out = two.s.transfer.counts(), in = two.r.transfer.counts();
  CHECK_EQ(out.committed_sent, 1);
  CHECK_EQ(in.committed_received, 1);
  CHECK(out.send_seconds > 0 && out.send_seconds < kHangS);
  CHECK(in.receive_seconds > 0 && in.receive_seconds < kHangS);
  CHECK_EQ(out.no_room + out.expired + out.bad_checksum + in.no_room + in.expired + in.bad_checksum, 0);
  CHECK_EQ(out.data.payload_bytes_sent, 10 * 2 * 4 * 4);  // R knew none of it
  two.s.transfer.check_idle();
  CHECK_THROWS_WITH(two.r.transfer.check_idle(), Error, "running 1");
}

TEST(layers_are_pushed_when_the_device_has_stored_them_though_nobody_says_so) {
  Pair two;
  two.submit();
  two.schedule();
  two.until([&] { return two.s.transfer.counts().handover.sender.pushing == 1; });
  two.until([&] { return two.s.transfer.counts().data.messages_sent == 1; });  // the cached block
  two.computed(4, 4, 1);
  two.computed(8, 2, 2);
  for (int i = 0; i < 3; ++i) CHECK_EQ(two.s.transfer.counts().data.messages_sent, 1);
  two.device.last_done = 1;
  two.until([&] { return two.s.transfer.counts().data.messages_sent == 2; });
  two.device.last_done = 2;
  two.until([&] { return two.s.transfer.counts().data.messages_sent == 3; });
  two.prefilled();
  two.until([&] { return two.r.asked("join 1") == 1; });
}

TEST(what_the_engine_says_of_a_step_comes_behind_the_steps_layers) {
  Pair two;
  two.submit();
  two.schedule();
  two.until([&] { return two.s.transfer.counts().data.messages_sent == 1; });
  two.computed(4, 6, 1);
  (void)two.s.transfer.counts();  // taken up, and not stored
  two.device.last_done = 1;
  two.prefilled();
  two.until([&] { return two.r.asked("join 1") == 1; });
  const auto points = two.s.points();
  const auto at = [&](TracePoint point) { return std::ranges::find(points, point) - points.begin(); };
  CHECK(at(TracePoint::kLayersComputed) < at(TracePoint::kFirstToken));
}

TEST(outputs_that_were_sent_are_replayed_whole_from_the_position_that_a_router_asks_for) {
  Pair two;
  two.submit();
  two.schedule();
  two.computed(4, 6);
  two.prefilled();
  two.until([&] { return two.r.asked("join 1") == 1; });
  const RequestKey other{.router_epoch = kRouter, .request = 2};
  two.r.transfer.post_outputs({.key = {other, kKey, kKey},
                               .position = {0, 3, 4},
                               .token = {90, 91, 92},
                               .logprob = {-1.0f, -2.0f, -3.0f},
                               .finish = {FinishReason::kNone, FinishReason::kNone, FinishReason::kLength},
                               .num_cached_tokens = {0, 0, 0},
                               .times = {{}, {}, {.queued = 1, .prefill = 2}},
                               .num_top_logprobs = {2, 0, 1},
                               .top_logprobs = {{90, -1.0f}, {1, -1.5f}, {92, -3.0f}}});
  two.from_router(two.r, message::Attach{{{kKey, 3, message::AttachRole::kReceiver}}});
  const auto replay = [&]() -> const message::Outputs* {
    for (const message::ToRouter& one : two.r.to_router)
      if (const auto* outputs = std::get_if<message::Outputs>(&one))
        if (outputs->tokens[0].position == 3) return outputs;
    return nullptr;
  };
  two.until([&] { return replay() != nullptr; });
  const std::vector<SampledToken>& tokens = replay()->tokens;
  REQUIRE(tokens.size() == 2);
  CHECK_EQ(tokens[0].token, 91);
  CHECK_EQ(tokens[0].logprob, -2.0f);
  CHECK(tokens[0].top_logprobs.empty());
  CHECK_EQ(tokens[1].position, 4);
  CHECK_EQ(tokens[1].token, 92);
  CHECK(tokens[1].finish == FinishReason::kLength);
  CHECK((tokens[1].times == FirstTimes{.queued = 1, .prefill = 2}));
  CHECK_EQ(tokens[1].top_logprobs, (std::vector<std::pair<int32_t, float>>{{92, -3.0f}}));
}

TEST(a_receiver_that_is_lost_ends_what_waits_for_its_endpoint) {
  Pair two;
  two.submit();
  two.schedule();
  two.computed(4, 6);
  two.s.transfer.post(event::FromReceiver{
      two.r.transfer.self(), message::Granted{.key = kKey, .grant = 1, .prefix_tokens = 0, .lease = kHangS}});
  while (two.s.transfer.counts().data.pushes_waiting == 0) std::this_thread::yield();
  two.s.transfer.post(event::ReceiverLost{two.r.transfer.self(), "gone"});
  while (two.s.transfer.counts().data.pushes_in_flight > 0) std::this_thread::yield();
  CHECK_EQ(two.s.transfer.counts().data.messages_failed, 1);
  two.prefilled();
  two.until([&] { return two.s.asked("release 1") == 1; });
  two.s.transfer.check_idle();
}

TEST(a_submit_beyond_what_may_be_queued_is_busy_with_both_numbers) {
  Pair two;
  two.s.engine.num_queued = 100;
  SequenceSpec spec = prompt_of(8, 16);
  spec.key = kKey;
  two.from_router(two.s, message::Submit{std::make_shared<const SequenceSpec>(spec), std::nullopt, ""});
  two.until([&] { return !two.s.to_router.empty(); });
  const auto* busy = std::get_if<message::Busy>(&two.s.to_router[0]);
  REQUIRE(busy != nullptr);
  CHECK_EQ(busy->queued_tokens, 100);
  CHECK_EQ(busy->limit, 100);
  CHECK_EQ(two.s.asked("add 1"), 0);
}
