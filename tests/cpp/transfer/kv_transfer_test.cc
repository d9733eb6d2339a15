// KvTransfer with an engine that only has a pool: what it answers, what it asks the engine, and that it ends well.
#include "transfer/kv_transfer.h"

#include <poll.h>

#include <atomic>
#include <thread>

#include "check.h"
#include "pool_only.h"
#include "station.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

constexpr uint64_t kRouter = 77;
const WorkerKey kSender{"s", 3};

message::SpecPtr spec_of(uint64_t request, int tokens, int max_tokens = 4) {
  SequenceSpec spec = prompt_of(tokens, max_tokens);
  spec.key = {.router_epoch = kRouter, .request = request};
  return std::make_shared<const SequenceSpec>(std::move(spec));
}

// Can't go on with a sequence that has so many tokens.
struct LimitedPool : PoolOnly {
  using PoolOnly::PoolOnly;
  void validate(const SequenceSpec& spec, Role role) const override {
    PoolOnly::validate(spec, role);
    if (const size_t len = spec.prompt.size() + spec.output.size(); len >= max_model_len)
      throw InvalidRequest("PromptTooLongError", "prompt", concat(len, " tokens of ", max_model_len));
  }
  size_t max_model_len = 1000;
};

struct Bench {
  explicit Bench(int num_blocks = 64) : engine(num_blocks), transfer(cpu(), engine, {"r", 2}, config()) {}

  static KvTransferConfig config() {
    KvTransferConfig config;
    config.transport.mode = TransportMode::kTcp;
    config.times = unhurried();
    return config;
  }
  void start() {
    transfer.start();
    transfer.post(event::RouterConnected{kRouter});
  }
  void reserve(const message::SpecPtr& spec) { transfer.post(event::FromSender{kSender, message::Reserve{spec}}); }
  // Of a grant into which nothing was to be sent.
  void commit(const message::Granted& granted) {
    message::Commit commit;
    commit.key = granted.key;
    commit.grant = granted.grant;
    commit.first.token = 3;
    transfer.post(event::FromSender{kSender, commit});
  }
  // The next message of this kind that the transfer wants sent; what comes before it is passed over.
  template <class Body>
  Body hear() {
    const double end = now_s() + kHangS;
    for (;;) {
      for (; next < heard.size(); ++next) {
        if (const auto* to = std::get_if<outgoing::ToSender>(&heard[next]))
          if (const auto* body = get<Body>(to->body)) return ++next, *body;
        if (const auto* to = std::get_if<outgoing::ToRouter>(&heard[next]))
          if (const auto* body = get<Body>(to->body)) return ++next, *body;
        if constexpr (std::is_same_v<Body, outgoing::Fault>)
          if (const auto* fault = std::get_if<Body>(&heard[next])) return ++next, *fault;
      }
      if (now_s() > end) throw Unavailable("nothing was said");
      pollfd ready{transfer.fd(), POLLIN, 0};
      poll(&ready, 1, 100);
      for (Outgoing& one : transfer.take()) heard.push_back(std::move(one));
    }
  }
  BlockCounts blocks() { return engine.block_pool().counts(); }
  bool was_asked(const std::string& call) const {
    const auto calls = engine.calls();
    return std::ranges::find(calls, call) != calls.end();
  }

  LimitedPool engine;
  KvTransfer transfer;
  std::vector<Outgoing> heard;
  size_t next = 0;

 private:
  template <class Body, class... Bodies>
  static const Body* get(const std::variant<Bodies...>& body) {
    if constexpr ((std::is_same_v<Body, Bodies> || ...)) return std::get_if<Body>(&body);
    return nullptr;
  }
};

}  // namespace

TEST(a_reserve_gets_a_grant_and_an_abort_frees_it) {
  Bench r;
  r.start();
  const auto spec = spec_of(1, 10);
  r.reserve(spec);
  const auto granted = r.hear<message::Granted>();
  CHECK(granted.key == spec->key);
  CHECK_EQ(r.blocks().granted, 3);
  r.transfer.post(event::FromSender{kSender, message::Abort{spec->key, granted.grant}});
  r.hear<message::PeerFenced>();
  r.transfer.check_idle();
  CHECK_EQ(r.blocks().free, 64);
}

TEST(a_reserve_that_the_engine_could_never_run_gets_no_room_and_takes_none) {
  Bench r;
  r.engine.refuses = "validate 1";
  r.start();
  r.reserve(spec_of(1, 10));
  const auto answer = r.hear<message::NoRoom>();
  CHECK(answer.key == spec_of(1, 10)->key);
  CHECK(answer.reason.find("no validate 1") != std::string::npos);
  CHECK_EQ(r.blocks().free, 64);
  CHECK_EQ(r.transfer.counts().no_room, 1);
  r.reserve(spec_of(2, 10));  // nobody else is disturbed
  r.hear<message::Granted>();
}

TEST(a_reserve_that_could_not_go_on_behind_the_senders_token_gets_no_room) {
  Bench r;
  r.engine.max_model_len = 11;
  r.start();
  r.reserve(spec_of(1, 10));
  CHECK(r.hear<message::NoRoom>().reason.find("11 tokens of 11") != std::string::npos);
  r.reserve(spec_of(2, 9));
  CHECK(r.hear<message::Granted>().key == spec_of(2, 9)->key);
}

TEST(what_the_receiver_has_whole_joins_at_the_commit_without_a_byte) {
  Bench r;
  r.engine.cache(prompt_of(8));
  r.start();
  const auto spec = spec_of(1, 8);
  r.reserve(spec);
  const auto granted = r.hear<message::Granted>();
  CHECK_EQ(granted.prefix_tokens, 8);
  r.commit(granted);
  CHECK_EQ(r.hear<message::PeerCommitted>().grant, granted.grant);
  CHECK(r.was_asked("join 1"));
  CHECK_EQ(r.blocks().referenced, 2);  // the engine's now
  CHECK_EQ(r.transfer.counts().committed_received, 1);
  CHECK_EQ(r.transfer.counts().prefix_hit_tokens, 8);
}

TEST(a_commit_that_is_refused_is_counted_by_what_was_answered) {
  Bench r;
  r.engine.cache(prompt_of(8));
  r.start();
  r.reserve(spec_of(1, 8));
  const auto granted = r.hear<message::Granted>();
  message::Commit commit;
  commit.key = granted.key;
  commit.grant = granted.grant + 1;
  commit.first.token = 3;
  r.transfer.post(event::FromSender{kSender, commit});
  CHECK_EQ(r.hear<message::Expired>().grant, granted.grant + 1);
  CHECK_EQ(r.transfer.counts().expired, 1);
  commit.grant = granted.grant;
  commit.checksum = 5;  // of no bytes it is 0
  r.transfer.post(event::FromSender{kSender, commit});
  const auto bad = r.hear<message::BadChecksum>();
  CHECK_EQ(bad.expected, 5);
  CHECK_EQ(bad.found, 0);
  const KvTransferCounts counts = r.transfer.counts();
  CHECK_EQ(counts.bad_checksum, 1);
  CHECK_EQ(counts.expired, 1);
  CHECK_EQ(counts.no_room + counts.committed_received, 0);
}

TEST(a_join_that_the_engine_refuses_gives_the_blocks_back_and_fails_the_request) {
  Bench r;
  r.engine.cache(prompt_of(8));
  r.engine.refuses = "join 1";
  r.start();
  const auto spec = spec_of(1, 8);
  r.reserve(spec);
  const auto granted = r.hear<message::Granted>();
  r.commit(granted);
  const auto failed = r.hear<message::Failed>();
  CHECK(failed.key == spec->key);
  CHECK_EQ(failed.type, "PromptTooLongError");
  CHECK_EQ(failed.param, "max_tokens");
  CHECK(failed.message.find("no join 1") != std::string::npos);
  r.transfer.check_idle();
  CHECK_EQ(r.blocks().referenced, 0);
  CHECK_EQ(r.blocks().granted + r.blocks().quarantined, 0);
  CHECK_EQ(r.engine.slot_pool().counts().taken, 0);
  r.engine.block_pool().check_integrity();
}

TEST(a_submit_that_the_engine_refuses_fails_by_name) {
  for (const char* refused : {"validate 1", "add 1"}) {
    Bench w;
    w.engine.refuses = refused;
    w.start();
    message::Submit submit;
    submit.spec = spec_of(1, 10);
    event::FromRouter from;
    from.router_epoch = kRouter;
    from.body = submit;
    w.transfer.post(from);
    const auto failed = w.hear<message::Failed>();
    CHECK_EQ(failed.type, "PromptTooLongError");
    CHECK_EQ(failed.param, "max_tokens");
    CHECK(failed.message.find(concat("no ", refused)) != std::string::npos);
    w.transfer.check_idle();
  }
}

TEST(a_reserve_that_waits_is_granted_when_the_pool_has_room) {
  Bench r(16);
  r.start();
  const auto taken = r.engine.block_pool().allocate(12).value();
  r.reserve(spec_of(1, 40));
  while (r.transfer.counts().handover.receiver.queued == 0) std::this_thread::yield();
  CHECK_EQ(r.blocks().granted, 0);
  r.engine.block_pool().release(taken);  // nothing else is told
  r.hear<message::Granted>();
  CHECK_EQ(r.blocks().granted, 10);
}

TEST(a_pool_that_outlives_the_transfer_goes_on_alone) {
  PoolOnly engine(16);
  {
    KvTransfer transfer(cpu(), engine, {"r", 2}, Bench::config());
    transfer.start();
    const auto taken = engine.block_pool().allocate(12).value();
    transfer.post(event::RouterConnected{kRouter});
    transfer.post(event::FromSender{kSender, message::Reserve{spec_of(1, 40)}});  // it waits to hear of room
    while (transfer.counts().handover.receiver.queued == 0) std::this_thread::yield();
    transfer.stop();
    engine.block_pool().release(taken);
  }
  CHECK_EQ(engine.calls().back(), "stop");                               // the engine says nothing to who is gone
  engine.block_pool().release(engine.block_pool().allocate(1).value());  // a sanitizer would see who hears this
  CHECK_EQ(engine.block_pool().counts().free, 16);
}

TEST(after_a_fault_it_is_said_once_and_questions_are_still_answered) {
  Bench w;
  w.start();
  const auto spec = spec_of(1, 10);
  w.reserve(spec);
  w.hear<message::Granted>();
  std::thread asks([&] {  // while it ends
    for (int i = 0; i < 200; ++i) (void)w.transfer.counts();
  });
  w.engine.listener->on_failed("a broken invariant");
  CHECK_EQ(w.hear<outgoing::Fault>().text, "the engine has failed: a broken invariant");
  asks.join();
  CHECK_EQ(w.transfer.counts().handover.receiver.granted, 1);  // as it stood
  CHECK(w.transfer.trace(spec->key).size() == 1);
  CHECK_THROWS_WITH(w.transfer.check_idle(), Error, "not idle");
  CHECK_THROWS_WITH(w.transfer.post(event::RouterConnected{kRouter}), Error, "the transfer thread has ended");
  w.transfer.stop();
  CHECK_EQ(w.transfer.counts().handover.receiver.granted, 1);
}

TEST(a_question_that_stands_behind_a_fault_is_answered) {
  for (int round = 0; round < 20; ++round) {
    Bench w;
    std::atomic<bool> held = false, go_on = false;
    w.engine.at_call = [&] {  // on the transfer thread: what is posted meanwhile is taken at once
      held = true;
      held.notify_all();
      go_on.wait(false);
    };
    w.start();
    w.reserve(spec_of(1, 10));
    held.wait(false);
    w.engine.listener->on_failed("a broken invariant");
    std::atomic<int> asking = 0, answered = 0;
    std::vector<std::thread> asks;
    for (int i = 0; i < 4; ++i)
      asks.emplace_back([&] {
        ++asking;
        asking.notify_all();
        (void)w.transfer.counts();
        ++answered;
      });
    for (int count = 0; count < 4; count = asking) asking.wait(count);
    poll(nullptr, 0, 1);  // most have asked by then
    go_on = true;
    go_on.notify_all();
    for (std::thread& each : asks) each.join();
    CHECK_EQ(answered.load(), 4);
  }
}

TEST(it_starts_once_and_answers_before_and_after) {
  Bench w;
  w.transfer.check_idle();  // before it runs, on this thread
  w.transfer.start();
  CHECK_THROWS_WITH(w.transfer.start(), InvalidArgument, "runs already");
  w.transfer.check_idle();
  w.transfer.stop();
  w.transfer.check_idle();
}

TEST(max_push_tokens_holds_a_block_at_least) {
  PoolOnly engine(4);
  KvTransferConfig config = Bench::config();
  config.max_push_tokens = 3;
  CHECK_THROWS_WITH(KvTransfer(cpu(), engine, {"r", 2}, config), InvalidArgument,
                    "max_push_tokens 3 is less than a block of 4 tokens");
}
