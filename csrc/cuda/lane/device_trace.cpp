#include "cuda/lane/device_trace.h"

#include <utility>

#include "core/event.h"

namespace pearl {

namespace {

constexpr size_t kMaxRows = 1 << 16;  // of a run; what comes later is not timed
constexpr int kBaseTries = 5;
constexpr int64_t kBaseErrorNs = 40'000;  // twice what the two clocks may stand off
constexpr const char* kPlace = "while steps were timed";

}  // namespace

DeviceTrace::DeviceTrace(std::shared_ptr<Context> context, CUstream stream)
    : context_(std::move(context)), stream_(stream) {}

CUevent DeviceTrace::event(size_t index) {
  while (events_.size() <= index) events_.emplace_back(context_, CU_EVENT_DEFAULT);
  return events_[index].get();
}

void DeviceTrace::record(CUevent event) {
  const Driver& driver = context_->driver();
  driver.check(driver.api().cuEventRecord(event, stream_), "cuEventRecord", kPlace);
}

void DeviceTrace::start(bool on) {
  on_ = on;
  rows_.clear();
  if (!on) return;
  const Driver& driver = context_->driver();
  // Again while the answer was slow to come: the base lies somewhere between asking and hearing.
  for (int i = 0; i < kBaseTries; ++i) {
    const int64_t asked = now_ns();
    record(event(0));
    driver.check(driver.api().cuStreamSynchronize(stream_), "cuStreamSynchronize", kPlace);
    const int64_t took = now_ns() - asked;
    base_ns_ = asked + took / 2;
    if (took < kBaseErrorNs) break;
  }
}

void DeviceTrace::begin(OpKind op, int round) {
  if (!on_) return;
  if (rows_.size() == kMaxRows) {
    on_ = false;
    return;
  }
  rows_.push_back({op, round});
  record(event(2 * rows_.size() - 1));
}

void DeviceTrace::end() {
  if (on_) record(event(2 * rows_.size()));
}

void DeviceTrace::read(Trace* trace) {
  trace->reset(rows_.size());
  const Driver& driver = context_->driver();
  const auto at_ns = [&](size_t index) {
    float ms = 0;
    driver.check(driver.api().cuEventElapsedTime(&ms, events_[0].get(), events_[index].get()),
                 "cuEventElapsedTime", kPlace);
    return base_ns_ + static_cast<int64_t>(static_cast<double>(ms) * 1e6);
  };
  for (size_t i = 0; i < rows_.size(); ++i) {
    trace->add(rows_[i].op, rows_[i].round, at_ns(2 * i + 1), at_ns(2 * i + 2));
  }
}

}  // namespace pearl
