// A thread of ours, or a clear refusal where the process may not have one more.
#pragma once

#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "core/failure.h"

namespace pearl {

// Runs `body` on a new thread, whose destructor waits for it. purpose: what the thread is for. Throws
// Failure(kResource) if it cannot be had.
template <class Body>
std::jthread started_thread(const std::string& purpose, Body&& body) {
  try {
    return std::jthread(std::forward<Body>(body));
  } catch (const std::system_error& error) {
    throw Failure(FailureKind::kResource,
                  "no more threads can be started, and one is needed for " + purpose + " (" +
                      error.code().message() +
                      "): raise the limit (ulimit -u, or pids.max of a container), end other threads, or use "
                      "fewer cores (num_threads)");
  }
}

}  // namespace pearl
