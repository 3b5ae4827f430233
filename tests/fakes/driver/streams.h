// Streams of the fake driver: one thread each, and work that runs in order.
#pragma once

#include <atomic>
#include <memory>
#include <thread>

#include "world.h"

namespace fake {

// A count that one thread raises and others sleep on. Bare futex: the sleep itself orders nothing, so that
// ThreadSanitizer sees no order that the device would not have.
class Count {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  void raise();
  void wait_for(uint32_t at_least) const;

 private:
  std::atomic<uint32_t> value_{0};
};

// One cuEventRecord, or the end of one launch.
struct Record {
  explicit Record(Context* context) : context(context) {}
  void finish();
  bool is_done() const { return done.value() != 0; }
  Context* const context;
  int64_t t_ns = 0;  // of done
  Count done;
};

struct Event : Object {
  Event(Context* context, unsigned flags) : Object(Kind::kEvent), context(context), flags(flags) {}
  Context* const context;
  const unsigned flags;
  Record* record = nullptr;  // the most recent
};

class Stream;

// One piece of work. run is left out when the context has an error; finish never is.
struct Work {
  virtual ~Work() = default;
  virtual void run(Stream& stream) = 0;
  virtual void finish() {}
  std::atomic<Work*> next{nullptr};
};

class Stream : public Object {
 public:
  Stream(Context* context, int priority, uint64_t seed, int max_delay_us);
  ~Stream() override;                     // ends when the work before it has ended
  void push(std::unique_ptr<Work> work);  // under the world's lock
  bool is_idle() const { return ended_.value() == num_pushed_; }
  uint32_t num_pushed() const { return num_pushed_; }
  const Count& ended() const { return ended_; }
  void wait() const { ended_.wait_for(num_pushed_); }
  Random& random() { return random_; }  // of the stream's own thread
  int max_delay_us() const { return max_delay_us_; }

  Context* const context;
  const int priority;
  bool is_capturing = false;

 private:
  void main();

  Random random_;
  const int max_delay_us_;
  Work* last_;  // of callers
  uint32_t num_pushed_ = 0;
  Work* done_;  // of the thread: what it ran last
  Count pushed_, ended_;
  std::thread thread_;
};

// The stream of a handle, whose context is current: work may be put on it.
Stream& usable_stream(Call& call, void* handle, bool is_work);

// Runs a kernel on the calling worker thread, with the faults that were injected.
void run_kernel(Context& context, void (*kernel)(void*), void* argument);

}  // namespace fake
