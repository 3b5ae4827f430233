// The host thread that launches the work of a coordinator's CUDA lanes, as a lane sees it. Implemented by
// csrc/cuda/run/issuer.h.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "coordinator/run.h"
#include "coordinator/state.h"
#include "cuda/driver/driver.h"
#include "cuda/memory/device_arrays.h"

namespace pearl {

class CudaLane;

class Launcher {
 public:
  virtual ~Launcher() = default;

  virtual const std::shared_ptr<Driver>& driver() const = 0;
  virtual Signal* bell() = 0;
  // A number that no step of this thread's lanes has had.
  virtual uint64_t next_serial() = 0;
  // Throws Failure(kRequest) if more rounds may be in flight than the ring of these arrays takes.
  virtual void check_ring(const DeviceArrays& arrays) const = 0;

  // lanes: [target] or [target, draft], with their programs. Returns at once; the run ends by itself, or by
  // run.halt(). Throws Failure(kRequest) if another coordinator's run is in flight.
  virtual void start(std::vector<CudaLane*> lanes, State* state, Run* run) = 0;
  // Returns when no work of the lane's run is in flight.
  virtual void join(const CudaLane* lane) = 0;
  virtual bool is_running(const CudaLane* lane) const = 0;
};

}  // namespace pearl
