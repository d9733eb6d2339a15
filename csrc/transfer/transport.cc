#include "transfer/transport.h"

#include "transfer/kv_messages.h"
#include "transfer/links.h"
#include "transfer/listener_calls.h"
#include "transfer/ucx.h"

namespace rtp_llm {
namespace {

constexpr int kMaxProgressRounds = 64;  // then the thread looks at its other events
constexpr double kCloseAllS = 2;

}  // namespace

struct Transport::State {
  State(const TransportConfig& config, TransportListener& listener)
      : config(config),
        settings(transport_settings(config, [&](const std::string& text) { listener.on_warning(text); })),
        calls(listener),
        context(settings.ucx),
        worker(context),
        links(this->config, settings, worker, calls),
        messages(worker, links, calls) {}

  bool progress(double now) {
    bool any = false;
    for (int round = 0; round < kMaxProgressRounds && worker.progress(); ++round) any = true;
    messages.rethrow();
    any |= links.accept_connections();
    any |= links.say_hellos(now);
    any |= links.close_failed(now);
    any |= links.reap();
    any |= calls.make();
    return any;
  }

  const TransportConfig config;
  const TransportSettings settings;
  ListenerCalls calls;
  ucx::Context context;
  ucx::Worker worker;
  Links links;
  KvMessages messages;
};

Transport::Transport(const TransportConfig& config, TransportListener& listener)
    : state_(std::make_unique<State>(config, listener)) {}

Transport::~Transport() { state_->links.close_all(kCloseAllS); }

const std::string& Transport::address() const { return state_->links.address(); }

uint64_t Transport::expect(const WorkerKey& peer) { return state_->links.expect(peer); }

void Transport::connect(const WorkerKey& peer, const std::string& address, uint64_t nonce) {
  state_->links.connect(peer, address, nonce);
}

bool Transport::connected(const WorkerKey& peer) const {
  return state_->links.open_link(Direction::kSend, peer) != nullptr;
}

bool Transport::send(const WorkerKey& peer, const KvMessageHeader& header, std::vector<Piece> pieces, uint64_t tag) {
  return state_->messages.send(peer, header, pieces, tag);
}

bool Transport::close_by_force(Direction direction, const WorkerKey& peer) {
  return state_->links.close_by_force(direction, peer);
}

bool Transport::closing(Direction direction, const WorkerKey& peer) const {
  return state_->links.closing(direction, peer);
}

bool Transport::progress(double now) { return state_->progress(now); }
int Transport::event_fd() const { return state_->worker.event_fd(); }
bool Transport::arm() { return state_->calls.empty() && !state_->links.waiting() && state_->worker.arm(); }
std::optional<double> Transport::next_deadline() const { return state_->links.next_deadline(); }

TransportCounts Transport::counts() const {
  TransportCounts counts;
  state_->links.count(counts);
  state_->messages.count(counts);
  return counts;
}

}  // namespace rtp_llm
