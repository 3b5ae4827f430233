// The GIL is let go while this lives: what every binding that waits or works holds, in place of pybind11's
// guard.
//
// An interpreter that ends never gives the GIL back: it unwinds the thread that asks for it, a daemon thread,
// with pthread_exit (CPython before 3.14). Unwinding passes destructors that may not throw, and so ends the
// process with SIGABRT, whatever its exit status was. Here the thread sleeps instead, until the process is
// gone.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace pearl {

class WithoutGil {
 public:
  WithoutGil() : thread_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(thread_);
    } catch (...) {  // pthread_exit unwinds as an exception, which must not leave this block
      for (;;) pause();
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* const thread_;
};

}  // namespace pearl
