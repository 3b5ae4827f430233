// The GIL, held or let go while an object lives: WithoutGil in every binding that waits or works, in place of
// pybind11's guard, and WithGil where a thread of ours runs a function of Python's.
//
// An interpreter that ends never gives the GIL back: it unwinds the thread that asks for it, a daemon thread,
// with pthread_exit (CPython before 3.14). Unwinding passes destructors that may not throw, and so ends the
// process with SIGABRT, whatever its exit status was. Here the thread sleeps instead, until the process is
// gone.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace pearl {

// What ask() returns; or it never returns.
template <class Ask>
auto or_sleep(Ask ask) {
  try {
    return ask();
  } catch (...) {  // pthread_exit unwinds as an exception, which must not leave this block
    for (;;) pause();
  }
}

class WithoutGil {
 public:
  WithoutGil() : thread_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    or_sleep([this] { PyEval_RestoreThread(thread_); });
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* const thread_;
};

class WithGil {
 public:
  WithGil() : state_(or_sleep([] { return PyGILState_Ensure(); })) {}
  ~WithGil() { PyGILState_Release(state_); }
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;

 private:
  const PyGILState_STATE state_;
};

}  // namespace pearl
