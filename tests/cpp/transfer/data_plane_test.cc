// Two data planes in one process and on one thread: the test moves each of them by itself, so it can look at what is
// under way.
#include "transfer/data_plane.h"

#include <poll.h>

#include "check.h"
#include "pool_only.h"
#include "station.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

constexpr int kBlockTokens = 16, kLayers = 4;
constexpr uint64_t kTokenLayerBytes = 1024;  // 2 planes of 2 heads of 64 floats; a block is 64 KiB

const RequestKey kKey{.router_epoch = 7, .request = 1};

std::string text_of(const Event& event) {
  const auto name = [](Direction direction) { return direction == Direction::kSend ? "send" : "receive"; };
  if (const auto* done = std::get_if<event::PushDone>(&event)) return done->ok ? "pushed" : "not pushed";
  if (const auto* done = std::get_if<event::ReceiveDone>(&event)) return done->ok ? "received" : "not received";
  if (const auto* failed = std::get_if<event::EndpointFailed>(&event))
    return concat("failed ", name(failed->direction), " ", failed->peer.id);
  if (const auto* closed = std::get_if<event::EndpointClosed>(&event))
    return concat("closed ", name(closed->direction), " ", closed->peer.id);
  return "?";
}

struct Side {
  Side(WorkerKey self, const std::string& mode, Device& device)
      : self(std::move(self)),
        engine(16, KvLayout::transformer(kLayers, 2, 64, DType::kF32, kBlockTokens)),
        trace(64),
        data(device, engine, config_of(mode), 8 * kBlockTokens, trace,
             {.accept =
                  [this](const WorkerKey& from, const KvMessageHeader&, uint64_t bytes) {
                    accepted_from = from;
                    accepted_bytes = bytes;
                    return answer;
                  },
              .tell = [this](const Event& event) { told.push_back(event); },
              .want_endpoint = [this](const WorkerKey& receiver) { wanted.push_back(receiver.id); },
              .warn = [this](const std::string& text) { warnings.push_back(text); }}) {}

  static TransportConfig config_of(const std::string& mode) {
    TransportConfig config;
    config.mode = transport_mode_from_name(mode);
    return config;
  }
  std::vector<std::string> said() const {
    std::vector<std::string> texts;
    for (const Event& event : told) texts.push_back(text_of(event));
    return texts;
  }
  int gated() { return engine.block_pool().counts().gated; }

  WorkerKey self;
  PoolOnly engine;
  Trace trace;
  std::variant<Destination, Refusal> answer = Refusal::kNoSuchGrant;
  std::optional<WorkerKey> accepted_from;
  uint64_t accepted_bytes = 0;
  std::vector<Event> told;
  std::vector<std::string> wanted, warnings;
  DataPlane data;  // last: it calls the rest
};

// `tokens` tokens of all layers, from position 32 on.
struct Push {
  explicit Push(Side& s, const WorkerKey& receiver, int tokens)
      : blocks(s.engine.block_pool().allocate((tokens + kBlockTokens - 1) / kBlockTokens).value()) {
    for (size_t i = 0; i < blocks.size(); ++i) {
      const auto bytes = s.engine.bytes_of(blocks[i]);
      for (size_t j = 0; j < bytes.size(); ++j) bytes[j] = pattern(i, j);
    }
    action = {.receiver = receiver,
              .key = kKey,
              .header = {.num_layers = kLayers,
                         .receiver_epoch = receiver.epoch,
                         .grant = 5,
                         .first_token = 32,
                         .tokens = static_cast<uint32_t>(tokens)},
              .blocks = blocks};
  }
  std::vector<int32_t> blocks;
  action::PushLayers action;
};

struct Couple {
  explicit Couple(const std::string& mode = "shm", Device& device = cpu())
      : s({"s", 1}, mode, device), r({"r", 2}, mode, device) {}

  void connect() { s.data.connect(r.self, r.data.transport().address(), r.data.transport().expect(s.self)); }
  // Moves both until `holds`, or only one of them.
  template <class Condition>
  void until(Condition holds, bool move_s = true, bool move_r = true) {
    const double end = now_s() + kHangS;
    while (!holds()) {
      REQUIRE(now_s() < end);
      bool any = false;
      if (move_s) any |= s.data.transport().progress(now_s());
      if (move_r) any |= r.data.transport().progress(now_s());
      if (!any) poll(nullptr, 0, 1);
    }
  }
  // R has granted as many blocks as the push has; it lets the message in.
  std::vector<int32_t> let_in(const Push& push) {
    const auto blocks = r.engine.block_pool().grant(static_cast<int>(push.blocks.size())).value();
    r.answer = Destination{.grant = 5,
                           .key = kKey,
                           .num_layers = kLayers,
                           .first_token = 32,
                           .tokens = static_cast<int32_t>(push.action.header.tokens),
                           .blocks = blocks};
    return blocks;
  }
  // A message so large that its bytes come only when both move; R has accepted it.
  std::vector<int32_t> begin(const Push& push) {
    const auto blocks = let_in(push);
    connect();
    s.data.push(push.action);
    until([&] { return r.data.counts().receives_in_flight == 1; });
    return blocks;
  }

  Side s, r;
};

void pushed_tokens_land(const std::string& mode, int tokens, Device& device = cpu()) {
  Couple two(mode, device);
  const Push push(two.s, two.r.self, tokens);
  const auto blocks = two.let_in(push);
  two.connect();
  two.s.data.push(push.action);
  two.until([&] { return !two.s.told.empty() && !two.r.told.empty(); });
  const auto* sent = std::get_if<event::PushDone>(&two.s.told[0]);
  const auto* landed = std::get_if<event::ReceiveDone>(&two.r.told[0]);
  REQUIRE(sent != nullptr && landed != nullptr);
  const uint64_t bytes = tokens * kLayers * kTokenLayerBytes;
  CHECK(sent->ok && sent->key == kKey && sent->grant == 5);
  CHECK(landed->ok && landed->grant == 5);
  CHECK_EQ(sent->bytes, bytes);
  CHECK_EQ(landed->bytes, bytes);
  CHECK_EQ(sent->checksum, landed->checksum);
  CHECK(sent->checksum != 0);
  CHECK(landed->verify > 0);
  CHECK(two.r.accepted_from == two.s.self);
  CHECK_EQ(two.r.accepted_bytes, bytes);
  for (size_t i = 0; i < blocks.size(); ++i) {
    if ((i + 1) * kBlockTokens > static_cast<size_t>(tokens)) continue;
    CHECK(std::ranges::equal(two.r.engine.bytes_of(blocks[i]), two.s.engine.bytes_of(push.blocks[i])));
  }
  const DataPlaneCounts out = two.s.data.counts(), in = two.r.data.counts();
  CHECK_EQ(out.payload_bytes_sent, bytes);
  CHECK_EQ(in.payload_bytes_received, bytes);
  CHECK_EQ(out.messages_sent, 1);
  CHECK_EQ(in.messages_received, 1);
  CHECK_EQ(out.pushes_in_flight + out.pushes_waiting + in.receives_in_flight, 0);
  const auto points = [](const Side& side) {
    std::vector<TracePoint> points;
    for (const TraceEntry& entry : side.trace.entries(kKey)) {
      points.push_back(entry.point);
      CHECK_EQ(entry.first_token, 32);
      CHECK_EQ(entry.num_layers, kLayers);
      CHECK_EQ(entry.bytes, side.trace.entries(kKey)[0].bytes);
    }
    return points;
  };
  CHECK_EQ(points(two.s), (std::vector{TracePoint::kPosted, TracePoint::kSent}));
  CHECK_EQ(points(two.r), (std::vector{TracePoint::kAccepted, TracePoint::kReceived}));
}

}  // namespace

TEST(pushed_tokens_land_in_the_granted_blocks_and_both_sides_sum_them) {
  pushed_tokens_land("shm", 3 * kBlockTokens);
  pushed_tokens_land("tcp", 3 * kBlockTokens);
  pushed_tokens_land("shm", 2 * kBlockTokens + 5);  // the last block isn't full
  pushed_tokens_land("shm", 3);                     // eager
}

TEST(kv_that_ucx_does_not_reach_passes_through_host_memory) {
  pushed_tokens_land("shm", 3 * kBlockTokens, staged_cpu());  // longer than a slot
  pushed_tokens_land("tcp", 2 * kBlockTokens, staged_cpu());
  pushed_tokens_land("shm", kBlockTokens + 5, staged_cpu());
  pushed_tokens_land("shm", 3, staged_cpu());
}

TEST(a_push_waits_for_its_endpoint_which_is_wanted_once) {
  Couple two;
  const Push first(two.s, two.r.self, 16), second(two.s, two.r.self, 16);
  two.s.data.push(first.action);
  two.s.data.push(second.action);
  CHECK_EQ(two.s.wanted, std::vector<std::string>{"r"});
  CHECK_EQ(two.s.data.counts().pushes_waiting, 2);
  CHECK_EQ(two.s.data.counts().pushes_in_flight, 2);
  two.let_in(first);
  two.connect();
  CHECK_EQ(two.s.data.counts().pushes_waiting, 0);
  two.until([&] { return two.s.told.size() == 2 && two.r.told.size() == 2; });
  CHECK_EQ(two.s.said(), (std::vector<std::string>{"pushed", "pushed"}));
  two.connect();  // it stands: nothing happens
  CHECK_EQ(two.s.data.transport().counts().outbound, 1);
}

TEST(the_blocks_of_a_push_that_waits_are_pinned_until_it_is_given_up) {
  Couple two;
  const Push push(two.s, two.r.self, 32);
  two.s.data.push(push.action);
  two.s.engine.block_pool().release(push.blocks);
  CHECK_EQ(two.s.gated(), 2);
  two.s.data.abandon({"somebody", 9});
  CHECK_EQ(two.s.gated(), 2);
  two.s.data.abandon(two.r.self);
  CHECK_EQ(two.s.gated(), 0);
  CHECK_EQ(two.s.said(), std::vector<std::string>{"not pushed"});
  CHECK_EQ(two.s.data.counts().messages_failed, 1);
}

TEST(blocks_are_pinned_on_both_sides_while_bytes_travel) {
  Couple two;
  const Push push(two.s, two.r.self, 128);
  const auto blocks = two.begin(push);
  two.s.engine.block_pool().release(push.blocks);
  CHECK_EQ(two.s.gated(), 8);  // the sequence is gone, its blocks are read
  CHECK_THROWS_WITH(two.r.engine.block_pool().granted_to_referenced(blocks), InvalidArgument, "may still touch it");
  two.r.engine.block_pool().quarantine(blocks);
  two.r.engine.block_pool().free_quarantined(blocks);
  CHECK_EQ(two.r.gated(), 8);  // the grant is void, its blocks are written
  two.until([&] { return !two.s.told.empty() && !two.r.told.empty(); });
  CHECK_EQ(two.s.gated(), 0);
  CHECK_EQ(two.r.gated(), 0);
  CHECK_EQ(two.r.said(), std::vector<std::string>{"received"});
  two.s.engine.block_pool().check_integrity();
  two.r.engine.block_pool().check_integrity();
}

TEST(a_close_is_told_behind_the_receives_that_it_ends) {
  Couple two;
  const Push push(two.s, two.r.self, 128);
  two.begin(push);
  two.r.data.close(two.s.self, Direction::kReceive);
  CHECK(two.r.told.empty());  // bytes may still come
  two.until([&] { return two.r.told.size() == 2; });
  CHECK(two.r.said()[0].ends_with("received"));  // landed or not
  CHECK_EQ(two.r.said()[1], "closed receive s");
  CHECK_EQ(two.r.data.counts().receives_in_flight, 0);
  two.until([&] { return two.s.told.size() == 2; });
  CHECK(two.s.said()[0].ends_with("pushed"));
  CHECK_EQ(two.s.said()[1], "failed send r");  // nobody here wanted it
  CHECK_EQ(two.s.warnings.size(), 1);
}

TEST(a_close_is_told_behind_the_pushes_that_it_ends) {
  Couple two;
  const Push sent(two.s, two.r.self, 128), more(two.s, two.r.self, 16);
  two.begin(sent);
  two.s.data.close(two.r.self, Direction::kSend);
  CHECK(two.s.told.empty());
  two.s.data.push(more.action);  // finds none that stands: waits
  CHECK_EQ(two.s.data.counts().pushes_waiting, 1);
  two.s.data.close(two.r.self, Direction::kSend);  // ends that one, too
  CHECK_EQ(two.s.said(), std::vector<std::string>{"not pushed"});
  two.until([&] { return two.s.told.size() == 3; });
  CHECK(two.s.said()[1].ends_with("pushed"));
  CHECK_EQ(two.s.said()[2], "closed send r");
  CHECK_EQ(two.s.data.counts().pushes_in_flight, 0);
}

TEST(a_close_is_told_though_another_endpoint_stands_by_then) {
  Couple two;
  two.connect();
  two.s.data.close(two.r.self, Direction::kSend);
  two.connect();
  two.until([&] { return !two.s.told.empty(); });
  CHECK_EQ(two.s.said(), std::vector<std::string>{"closed send r"});
  CHECK_EQ(two.s.data.transport().counts().outbound, 1);
  // It carries KV. (Nor may a listener end while a peer connects: UCX 1.22 doesn't survive that, openucx/ucx#11087.)
  const Push push(two.s, two.r.self, 16);
  two.let_in(push);
  two.s.data.push(push.action);
  two.until([&] { return two.s.told.size() == 2 && !two.r.told.empty(); });
  CHECK_EQ(two.s.said().back(), "pushed");
}

TEST(closing_what_is_not_there_is_told_at_once) {
  Couple two;
  two.s.data.close(two.r.self, Direction::kSend);
  two.s.data.close(two.r.self, Direction::kReceive);
  CHECK_EQ(two.s.said(), (std::vector<std::string>{"closed send r", "closed receive r"}));
}

TEST(a_refused_message_is_counted_by_its_reason_and_its_push_ends) {
  Couple two;
  const Push push(two.s, two.r.self, 32);
  two.r.answer = Refusal::kRange;
  two.connect();
  two.s.data.push(push.action);
  two.until([&] { return !two.s.told.empty(); });
  CHECK_EQ(two.s.said(), std::vector<std::string>{"pushed"});
  two.until([&] { return two.r.data.counts().transport.messages_refused == 1; });
  const auto refused = two.r.data.counts().refused;
  CHECK_EQ(refused.size(), 1);
  CHECK_EQ(refused.at(static_cast<uint8_t>(Refusal::kRange)), 1);
  CHECK(two.r.told.empty());
}

TEST(an_address_that_is_none_ends_the_pushes_that_wait_and_is_told_as_a_broken_endpoint) {
  Couple two;
  const Push push(two.s, two.r.self, 16);
  two.s.data.push(push.action);
  two.s.data.connect(two.r.self, "nowhere", 3);
  CHECK_EQ(two.s.said(), (std::vector<std::string>{"not pushed", "failed send r"}));
  REQUIRE(two.s.warnings.size() == 1);
  CHECK(two.s.warnings[0].find("no endpoint to r") != std::string::npos);
  two.s.engine.block_pool().release(push.blocks);
  CHECK_EQ(two.s.gated(), 0);
}

TEST(a_layout_of_two_groups_is_refused) {
  KvLayout layout = small_layout();
  layout.groups.push_back(layout.groups[0]);
  PoolOnly engine(4, layout);
  Trace trace(1);
  CHECK_THROWS_WITH(DataPlane(cpu(), engine, {}, 16, trace, {}), InvalidArgument, "one group, the layout has 2");
}
