#include "cuda/loop.h"

#include <algorithm>
#include <atomic>

#include "cuda/loop_kernels.h"

namespace pearl {

void Loop::begin(CudaLane* target) {
  const ArrayAddresses& at = target->arrays().at();
  *this = Loop();
  target_ = target;
  host_ = reinterpret_cast<int32_t*>(at.loop_host);
  std::fill(host_, host_ + LoopHostWords::kCount, 0);
  target->queue({{at.loop, address(host_ + LoopHostWords::kZero), LoopWords::kCount * sizeof(int32_t)}});
}

void Loop::launch(CUgraphExec exec, int64_t round, int64_t more) {
  before_ = round - ran_;
  allowed_ = round + more;
  store_allowed(allowed_ - before_);
  target_->launch_rounds(exec, OpKind::kLoop, round + 1);
  ++num_launched_;
  is_flying_ = true;
  is_stopped_ = false;
}

void Loop::allow(int64_t more) {
  if (is_stopped_ || more <= 0) return;
  allowed_ += more;
  store_allowed(allowed_ - before_);
}

void Loop::stop() {
  if (!is_flying_ || is_stopped_) return;
  is_stopped_ = true;
  store_allowed(0);
}

bool Loop::has_record() const {
  return std::atomic_ref<int32_t>(host_[LoopHostWords::kEnded]).load(std::memory_order_acquire) ==
         num_launched_;
}

bool Loop::has_ended() {
  if (!has_record()) return false;
  is_flying_ = false;
  ran_ = static_cast<uint32_t>(host_[LoopHostWords::kRan]);  // stored before the record
  return true;
}

// With release: verdicts that were read are, before a round overwrites them.
void Loop::store_allowed(int64_t rounds) {
  std::atomic_ref<int32_t>(host_[LoopHostWords::kUntil])
      .store(static_cast<int32_t>(rounds), std::memory_order_release);
}

}  // namespace pearl
