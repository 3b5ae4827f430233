// The GIL is held while this lives: what a thread of ours holds while it runs a function of Python's.
//
// An interpreter that ends unwinds the thread that asks for the GIL, which would end the process with SIGABRT
// (python/without_gil.h says why). Here the thread sleeps instead, until the process is gone.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace pearl {

class WithGil {
 public:
  WithGil() {
    try {
      state_ = PyGILState_Ensure();
    } catch (...) {  // pthread_exit unwinds as an exception, which must not leave this block
      for (;;) pause();
    }
  }
  ~WithGil() { PyGILState_Release(state_); }
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;

 private:
  PyGILState_STATE state_;
};

}  // namespace pearl
