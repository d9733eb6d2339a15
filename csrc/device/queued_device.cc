#include "device/queued_device.h"

#include <pthread.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "device/checksum.h"
#include "device/ops.h"

namespace rtp_llm {
namespace {

using Clock = std::chrono::steady_clock;

// The queue and its thread. push, record: one thread at a time; done: any.
class WorkQueue {
 public:
  explicit WorkQueue(const QueuedDeviceOptions& options) : options_(options), thread_([this] { run(); }) {
    pthread_setname_np(thread_.native_handle(), "rtp-device");
  }
  ~WorkQueue() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    pushed_.notify_one();
    thread_.join();
  }

  void push(std::function<void()> work) {
    {
      const std::lock_guard lock(mutex_);
      if (fault_ != nullptr) return;
      queue_.push_back(std::move(work));
    }
    pushed_.notify_one();
  }

  StreamEvent record() {
    const uint64_t number = ++num_recorded_;
    push([this, number] {
      {
        const std::lock_guard lock(mutex_);
        times_[number % Device::kTimedEvents] = Clock::now();
        num_done_ = number;
      }
      event_done_.notify_all();
    });
    return {number};
  }
  bool done(StreamEvent event) {
    const std::lock_guard lock(mutex_);
    rethrow();
    return event.number <= num_done_;
  }
  void wait(StreamEvent event) {
    std::unique_lock lock(mutex_);
    check(event.number <= num_recorded_, "event ", event.number, " was never recorded, there are ", num_recorded_);
    event_done_.wait(lock, [&] { return fault_ != nullptr || event.number <= num_done_; });
    rethrow();
  }
  double seconds_between(StreamEvent begin, StreamEvent end) {
    const std::lock_guard lock(mutex_);
    for (const StreamEvent event : {begin, end})
      check(event.number > 0 && event.number <= num_done_ && num_done_ - event.number < Device::kTimedEvents, "event ",
            event.number, " has no time, ", num_done_, " are done and the last ", Device::kTimedEvents, " have one");
    const std::chrono::duration<double> between =
        times_[end.number % Device::kTimedEvents] - times_[begin.number % Device::kTimedEvents];
    return between.count();
  }
  // Returns when nothing runs any more, also after a fault.
  void synchronize() {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return queue_.empty() && !running_; });
    rethrow();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      pushed_.wait(lock, [&] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      std::function<void()> work = std::move(queue_.front());
      queue_.pop_front();
      running_ = true;
      lock.unlock();
      delay();
      perform(work);
      work = nullptr;
      lock.lock();
      running_ = false;
      if (queue_.empty()) idle_.notify_all();
    }
  }
  void perform(const std::function<void()>& work) {
    try {
      work();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      fault_ = std::current_exception();
      queue_.clear();
      event_done_.notify_all();
    }
  }
  void delay() {
    if (options_.delay_seed == 0) return;
    const uint64_t drawn = mix64(options_.delay_seed + ++num_delays_);
    if (drawn % 16 == 0)
      std::this_thread::sleep_for(std::chrono::microseconds((drawn >> 32) % (options_.max_delay_us + 1)));
    else if (drawn % 4 == 0)
      std::this_thread::yield();
  }
  void rethrow() const {
    if (fault_ != nullptr) std::rethrow_exception(fault_);
  }

  const QueuedDeviceOptions options_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable pushed_, event_done_, idle_;
  std::deque<std::function<void()>> queue_;
  bool running_ = false;
  bool stop_ = false;
  std::exception_ptr fault_;
  uint64_t num_done_ = 0;
  std::array<Clock::time_point, Device::kTimedEvents> times_{};  // by number, the last ones

  uint64_t num_recorded_ = 0;  // the host's
  uint64_t num_delays_ = 0;    // the thread's
  std::thread thread_;         // last: it uses the rest
};

class QueuedOps final : public Ops {
 public:
  QueuedOps(Ops& ops, WorkQueue& queue) : ops_(ops), queue_(queue) {}

  bool forms_equal() const override { return ops_.forms_equal(); }
  ActivationTypes activation_types(DType weight_dtype) const override { return ops_.activation_types(weight_dtype); }
  std::unique_ptr<LinearPacker> pack(const LinearSpec& spec) override { return ops_.pack(spec); }
  std::unique_ptr<LinearPacker> repack(PackedLinear& weight) override { return ops_.repack(weight); }
  int64_t attention_workspace_bytes(int64_t max_rows, int num_heads, int num_kv_heads, int head_dim,
                                    int64_t max_positions) const override {
    return ops_.attention_workspace_bytes(max_rows, num_heads, num_kv_heads, head_dim, max_positions);
  }
  int64_t sample_workspace_bytes(int64_t max_rows, int64_t vocab) const override {
    return ops_.sample_workspace_bytes(max_rows, vocab);
  }
  uint64_t checksum(const ChecksumArgs& args) const override { return ops_.checksum(args); }

  void linear(const LinearArgs& args) override { launch<&Ops::linear>(args); }
  void embedding(const EmbeddingArgs& args) override { launch<&Ops::embedding>(args); }
  void rms_norm(const NormArgs& args) override { launch<&Ops::rms_norm>(args); }
  void layer_norm(const NormArgs& args) override { launch<&Ops::layer_norm>(args); }
  void rope(const RopeArgs& args) override { launch<&Ops::rope>(args); }
  void store_kv(const StoreKvArgs& args) override { launch<&Ops::store_kv>(args); }
  void paged_attention_prefill(const AttentionArgs& args) override { launch<&Ops::paged_attention_prefill>(args); }
  void paged_attention_decode(const AttentionArgs& args) override { launch<&Ops::paged_attention_decode>(args); }
  void gated_activation(const GatedActivationArgs& args) override { launch<&Ops::gated_activation>(args); }
  void gather_rows(const GatherRowsArgs& args) override { launch<&Ops::gather_rows>(args); }
  void add(const Tensor& x, const Tensor& delta) override {
    queue_.push([&ops = ops_, x, delta] { ops.add(x, delta); });
  }
  void sample(const SampleArgs& args) override { launch<&Ops::sample>(args); }
  void advance(const AdvanceArgs& args) override { launch<&Ops::advance>(args); }
  void update_slots(const UpdateSlotsArgs& args) override { launch<&Ops::update_slots>(args); }
  void zero_blocks(const ZeroBlocksArgs& args) override { launch<&Ops::zero_blocks>(args); }
  void add_rms_norm(const AddRmsNormArgs& args) override { launch<&Ops::add_rms_norm>(args); }
  void qkv_rope_store(const QkvRopeStoreArgs& args) override { launch<&Ops::qkv_rope_store>(args); }
  int64_t rope_table_bytes(int64_t max_rows, int head_dim) const override {
    return ops_.rope_table_bytes(max_rows, head_dim);
  }
  void rope_table(const RopeTableArgs& args) override { launch<&Ops::rope_table>(args); }
  void linear_rope_store(const LinearArgs& linear, const QkvRopeStoreArgs& rope) override {
    queue_.push([&ops = ops_, linear, rope] { ops.linear_rope_store(linear, rope); });
  }
  void rope_store_decode(const QkvRopeStoreArgs& rope, const AttentionArgs& attention) override {
    queue_.push([&ops = ops_, rope, attention] { ops.rope_store_decode(rope, attention); });
  }
  void gated_mlp(const GatedMlpArgs& args) override { launch<&Ops::gated_mlp>(args); }

 private:
  template <auto kOp, class Args>
  void launch(const Args& args) {
    queue_.push([&ops = ops_, args] { (ops.*kOp)(args); });
  }

  Ops& ops_;
  WorkQueue& queue_;
};

class QueuedDevice final : public Device {
 public:
  QueuedDevice(std::unique_ptr<Device> device, const QueuedDeviceOptions& options)
      : device_(std::move(device)), queue_(options), ops_(device_->ops(), queue_) {}

  std::string backend() const override { return device_->backend(); }
  std::string isa() const override { return device_->isa(); }
  Ops& ops() override { return ops_; }
  bool runs_behind() const override { return true; }
  bool host_reaches_memory() const override { return false; }  // it could; an accelerator's is not reached

  Buffer allocate(int64_t bytes, const std::string& tag) override { return device_->allocate(bytes, tag); }
  Buffer allocate_shareable(int64_t bytes, const std::string& tag) override {
    return device_->allocate_shareable(bytes, tag);
  }
  Buffer allocate_pinned(int64_t bytes, const std::string& tag) override {
    return device_->allocate_pinned(bytes, tag);
  }
  std::vector<Allocation> allocations() const override { return device_->allocations(); }
  std::optional<DeviceMemory> memory() const override { return device_->memory(); }
  void copy(void* to, const void* from, int64_t bytes) override { device_->copy(to, from, bytes); }
  void zero(void* at, int64_t bytes) override { device_->zero(at, bytes); }

  void copy_async(void* to, const void* from, int64_t bytes) override {
    queue_.push([this, to, from, bytes] { device_->copy(to, from, bytes); });
  }
  StreamEvent record() override { return queue_.record(); }
  bool done(StreamEvent event) override { return queue_.done(event); }
  void wait(StreamEvent event) override { queue_.wait(event); }
  double seconds_between(StreamEvent begin, StreamEvent end) override { return queue_.seconds_between(begin, end); }
  void synchronize() override { queue_.synchronize(); }
  double read_rate(int64_t bytes, int rounds) override { return device_->read_rate(bytes, rounds); }

 private:
  std::unique_ptr<Device> device_;
  WorkQueue queue_;
  QueuedOps ops_;
};

}  // namespace

std::unique_ptr<Device> make_queued_device(std::unique_ptr<Device> device, const QueuedDeviceOptions& options) {
  return std::make_unique<QueuedDevice>(std::move(device), options);
}

}  // namespace rtp_llm
