// When a lane's ops began and ended on its device, by timing events around them. Knows a stream and a clock;
// not what an op does. Off, it costs nothing.
#pragma once

#include <memory>
#include <vector>

#include "core/trace.h"
#include "cuda/driver/handles.h"

namespace pearl {

class DeviceTrace {
 public:
  DeviceTrace(std::shared_ptr<Context> context, CUstream stream);

  // Once for each run, with the stream's work done. on: whether ops are timed. Waits for the stream, to learn
  // how its clock stands to the host's.
  void start(bool on);

  void begin(OpKind op, int round);
  void end();

  // With the stream's work done: rows on the host's steady clock.
  void read(Trace* trace);

 private:
  struct Row {
    OpKind op;
    int round;
  };
  CUevent event(size_t index);
  void record(CUevent event);

  const std::shared_ptr<Context> context_;
  const CUstream stream_;
  std::vector<CudaEvent> events_;  // [0] is the base, then two for each row; kept from run to run
  std::vector<Row> rows_;
  bool on_ = false;
  int64_t base_ns_ = 0;
};

}  // namespace pearl
