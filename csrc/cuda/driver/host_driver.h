// A driver for lanes whose memory is the host's and whose steps are functions: no library, no device. Every
// call does its work before it returns, on the thread that calls: a copy is a memcpy, and an event is the
// time at which it was recorded. So a stream never has work left, any handle but 0 names one, and to wait for
// an event is to do nothing. The issuer's thread thereby runs the ops of all lanes, in the order in which it
// queues them. There are no graphs: a call that needs one returns CUDA_ERROR_NOT_SUPPORTED.
#pragma once

#include <memory>

#include "cuda/driver/driver.h"

namespace pearl {

std::shared_ptr<Driver> host_driver();

}  // namespace pearl
