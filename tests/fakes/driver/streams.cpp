#include "streams.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>

#include "fake_cuda.h"

namespace fake {
namespace {

thread_local Context* running_in = nullptr;  // the context of the kernel that this thread runs

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Nothing : Work {
  void run(Stream&) override {}
};

struct Quit : Work {
  void run(Stream&) override {}
};

struct RecordWork : Work {
  explicit RecordWork(Record* record) : record(record) {}
  void run(Stream&) override {}
  void finish() override { record->finish(); }
  Record* const record;
};

struct WaitWork : Work {
  explicit WaitWork(Record* record) : record(record) {}
  void run(Stream&) override { record->done.wait_for(1); }
  Record* const record;
};

struct KernelWork : Work {
  KernelWork(fake_kernel kernel, void* argument) : kernel(kernel), argument(argument) {}
  void run(Stream& stream) override { run_kernel(*stream.context, kernel, argument); }
  const fake_kernel kernel;
  void* const argument;
};

void* new_stream(World* world, Context* context, int priority, bool is_tests_own) {
  const uint64_t seed = Random(world->seed + world->objects(Kind::kStream).size()).next();
  return world->add(std::make_unique<Stream>(context, priority, seed, world->max_delay_us), is_tests_own);
}

}  // namespace

void Count::raise() {
  value_.fetch_add(1, std::memory_order_release);
  syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void Count::wait_for(uint32_t at_least) const {
  for (uint32_t seen = value(); seen < at_least; seen = value()) {
    syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
  }
}

void Record::finish() {
  t_ns = now_ns();
  done.raise();
}

Stream::Stream(Context* context, int priority, uint64_t seed, int max_delay_us)
    : Object(Kind::kStream),
      context(context),
      priority(priority),
      random_(seed),
      max_delay_us_(priority < 0 ? max_delay_us / 2 : max_delay_us),
      last_(new Nothing),
      done_(last_),
      thread_(&Stream::main, this) {}

Stream::~Stream() {
  push(std::make_unique<Quit>());
  thread_.join();
  delete done_;
}

void Stream::push(std::unique_ptr<Work> work) {
  Work* const added = work.release();
  last_->next.store(added, std::memory_order_release);
  last_ = added;
  ++num_pushed_;
  pushed_.raise();
}

void Stream::main() {
  for (uint32_t count = 1;; ++count) {
    pushed_.wait_for(count);
    Work* const work = done_->next.load(std::memory_order_acquire);
    delete done_;
    done_ = work;
    if (dynamic_cast<Quit*>(work) != nullptr) return;
    random_.delay(max_delay_us_);
    if (context->error.load(std::memory_order_relaxed) == 0) work->run(*this);
    work->finish();
    ended_.raise();
  }
}

Stream& usable_stream(Call& call, void* handle, bool is_work) {
  if (handle == nullptr) call.refuse(kInvalidHandle, "on the default stream");
  auto& stream = call.object<Stream>(handle, Kind::kStream);
  if (stream.is_capturing) call.refuse(kCaptureUnsupported, "on a stream that is capturing");
  call.use(*stream.context, is_work);
  return stream;
}

void run_kernel(Context& context, void (*kernel)(void*), void* argument) {
  if (context.error.load(std::memory_order_relaxed) != 0) return;
  if (const CUresult fault = World::get().take_kernel_fault(); fault != 0) return context.raise(fault);
  running_in = &context;
  if (kernel != nullptr) kernel(argument);
  running_in = nullptr;
}

}  // namespace fake

using namespace fake;

FAKE_EXPORT void fake_raise(int code) {
  if (running_in == nullptr) return World::get().violation("fake_raise: outside a kernel");
  running_in->raise(code);
}

FAKE_EXPORT void* fake_stream_create(int device, int priority) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  return new_stream(&world, world.contexts.at(device), priority, true);
}

FAKE_EXPORT void fake_stream_destroy(void* handle) {
  Call call("fake_stream_destroy");
  try {
    auto& stream = call.object<Stream>(handle, Kind::kStream);
    if (!stream.is_idle()) call.violation("the stream is at work");
    stream.is_alive = false;
  } catch (const Refusal&) {
  }
}

FAKE_EXPORT void fake_stream_capture(void* handle, int is_on) {
  Call call("fake_stream_capture");
  try {
    auto& stream = call.object<Stream>(handle, Kind::kStream);
    if (stream.is_capturing == (is_on != 0)) return call.violation("begun twice, or ended twice");
    stream.is_capturing = is_on != 0;
    call.world.num_captures += is_on != 0 ? 1 : -1;
  } catch (const Refusal&) {
  }
}

FAKE_EXPORT void fake_launch(void* handle, fake_kernel kernel, void* argument) {
  Call call("fake_launch");
  try {
    call.object<Stream>(handle, Kind::kStream).push(std::make_unique<KernelWork>(kernel, argument));
  } catch (const Refusal&) {
  }
}

FAKE_EXPORT void fake_synchronize() {
  World& world = World::get();
  std::vector<std::pair<const Count*, uint32_t>> ends;
  {
    const std::lock_guard<std::mutex> lock(world.lock);
    for (Object* object : world.objects(Kind::kStream)) {
      const auto& stream = static_cast<const Stream&>(*object);
      ends.emplace_back(&stream.ended(), stream.num_pushed());
    }
  }
  for (const auto& [ended, count] : ends) ended->wait_for(count);
}

FAKE_EXPORT int fake_stream_priority(void* handle) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  const Object* const found = world.find(handle);
  return found != nullptr && found->kind == Kind::kStream ? static_cast<const Stream*>(found)->priority : 1;
}

FAKE_EXPORT CUresult cuStreamCreateWithPriority(pearl::CUstream* stream, unsigned flags, int priority) {
  return call("cuStreamCreateWithPriority", [&](Call& c) {
    Context& context = c.current();
    c.use(context, false);
    if (flags != pearl::CU_STREAM_NON_BLOCKING) {
      c.refuse(kInvalidValue, "flags are not NON_BLOCKING: the stream would wait for the default one");
    }
    *stream = static_cast<pearl::CUstream>(new_stream(&c.world, &context, priority, false));
  });
}

FAKE_EXPORT CUresult cuStreamDestroy(pearl::CUstream handle) {
  return call("cuStreamDestroy", [&](Call& c) {
    auto& stream = c.object<Stream>(handle, Kind::kStream);
    if (stream.is_capturing) c.refuse(kCaptureUnsupported, "the stream is capturing");
    if (!stream.is_idle()) c.violation("the stream is at work");
    stream.is_alive = false;
    c.use(*stream.context, false);
  });
}

FAKE_EXPORT CUresult cuStreamQuery(pearl::CUstream handle) {
  return call("cuStreamQuery", [&](Call& c) {
    c.no_capture();
    const bool is_idle = usable_stream(c, handle, false).is_idle();
    if (!is_idle && c.world.num_false_idle == 0) throw Refusal{kNotReady};
    if (!is_idle) --c.world.num_false_idle;
    usable_stream(c, handle, false);  // an error of the last work is told now
  });
}

FAKE_EXPORT CUresult cuStreamSynchronize(pearl::CUstream handle) {
  return call("cuStreamSynchronize", [&](Call& c) {
    c.no_capture();
    const Stream& stream = usable_stream(c, handle, false);
    const uint32_t count = stream.num_pushed();
    c.lock.unlock();
    stream.ended().wait_for(count);
    c.lock.lock();
    usable_stream(c, handle, false);
  });
}

FAKE_EXPORT CUresult cuStreamWaitEvent(pearl::CUstream handle, pearl::CUevent event_handle, unsigned flags) {
  return call("cuStreamWaitEvent", [&](Call& c) {
    Stream& stream = usable_stream(c, handle, true);
    const auto& event = c.object<Event>(event_handle, Kind::kEvent);
    if (flags != 0) c.refuse(kInvalidValue, "flags are not 0");
    if (event.record == nullptr) return c.violation("the event was never recorded: nothing is waited for");
    stream.push(std::make_unique<WaitWork>(event.record));
  });
}

FAKE_EXPORT CUresult cuEventCreate(pearl::CUevent* event, unsigned flags) {
  return call("cuEventCreate", [&](Call& c) {
    Context& context = c.current();
    c.use(context, false);
    if ((flags & ~(pearl::CU_EVENT_DISABLE_TIMING | 1u)) != 0) c.refuse(kInvalidValue, "unknown flags");
    *event = static_cast<pearl::CUevent>(c.world.add(std::make_unique<Event>(&context, flags), false));
  });
}

FAKE_EXPORT CUresult cuEventDestroy(pearl::CUevent handle) {
  return call("cuEventDestroy", [&](Call& c) {
    auto& event = c.object<Event>(handle, Kind::kEvent);
    event.is_alive = false;
    c.use(*event.context, false);
  });
}

FAKE_EXPORT CUresult cuEventRecord(pearl::CUevent handle, pearl::CUstream stream_handle) {
  return call("cuEventRecord", [&](Call& c) {
    auto& event = c.object<Event>(handle, Kind::kEvent);
    Stream& stream = usable_stream(c, stream_handle, true);
    if (event.context != stream.context) {
      c.refuse(kInvalidHandle, "the event belongs to device " + std::to_string(event.context->device) +
                                   ", the stream to device " + std::to_string(stream.context->device));
    }
    event.record = c.world.new_record(stream.context);
    stream.push(std::make_unique<RecordWork>(event.record));
  });
}

FAKE_EXPORT CUresult cuEventQuery(pearl::CUevent handle) {
  return call("cuEventQuery", [&](Call& c) {
    c.no_capture();
    const auto& event = c.object<Event>(handle, Kind::kEvent);
    c.use(*event.context, false);
    if (event.record != nullptr && !event.record->is_done()) throw Refusal{kNotReady};
    c.use(*event.context, false);
  });
}

FAKE_EXPORT CUresult cuEventElapsedTime(float* milliseconds, pearl::CUevent begin_handle,
                                        pearl::CUevent end_handle) {
  return call("cuEventElapsedTime", [&](Call& c) {
    const auto& begin = c.object<Event>(begin_handle, Kind::kEvent);
    const auto& end = c.object<Event>(end_handle, Kind::kEvent);
    c.use(*begin.context, false);
    if (begin.context != end.context) c.refuse(kInvalidHandle, "events of two devices");
    for (const Event* event : {&begin, &end}) {
      if ((event->flags & pearl::CU_EVENT_DISABLE_TIMING) != 0)
        c.refuse(kInvalidHandle, "an event without times");
      if (event->record == nullptr) c.refuse(kInvalidHandle, "an event that was never recorded");
    }
    if (!begin.record->is_done() || !end.record->is_done()) throw Refusal{kNotReady};
    *milliseconds = static_cast<float>(end.record->t_ns - begin.record->t_ns) * 1e-6f;
  });
}
