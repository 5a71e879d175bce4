// Python from C++: the interpreter (the host's own, or one that is started here), the GIL, errors, references.
#pragma once

#include <pybind11/embed.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

namespace stir_priors {

namespace py = pybind11;

// The Python side of all blocks.
constexpr const char* callbacks = "sirf_diffusion.interop.stir.callbacks";

// Starts an interpreter if the host has none, and makes the module `stir_priors._shim` exist in it.
void ensure_python();

// Ends the interpreter if ensure_python() started it; everything that holds Python objects must be gone by then.
void finish_python();

// True from the moment a Ctrl-C reached a callback.
bool was_interrupted();

// Throws if the user pressed Ctrl-C; call with the GIL held.
void check_signals();

// A message to Python's logger "stir_priors"; level as in logging ("info", "warning"). Never throws.
void log(const char* level, const std::string& text);

// Runs `body` with the GIL held; a Python error leaves as std::runtime_error with the traceback in its text.
template <typename Body>
auto with_python(const std::string& what, Body&& body) -> decltype(body());

// The traceback of a Python error as text.
std::string describe(py::error_already_set& error);

// A strong reference to a Python object that may be dropped on any thread and after the interpreter's end.
class Reference
{
public:
  Reference() = default;
  explicit Reference(py::object object)
      : pointer_(object.release().ptr())
  {}
  Reference(const Reference&) = delete;
  Reference& operator=(const Reference&) = delete;
  ~Reference() { reset(); }

  void reset(py::object object)
  {
    reset();
    pointer_ = object.release().ptr();
  }

  void reset()
  {
    // Without an interpreter there is nobody left to give the object back to.
    if (pointer_ != nullptr && Py_IsInitialized())
      {
        py::gil_scoped_acquire gil;
        Py_CLEAR(pointer_);
      }
    pointer_ = nullptr;
  }

  explicit operator bool() const { return pointer_ != nullptr; }
  py::handle get() const { return py::handle(pointer_); }

private:
  PyObject* pointer_ = nullptr;
};

[[noreturn]] void raise_interrupted();

template <typename Body>
auto
with_python(const std::string& what, Body&& body) -> decltype(body())
{
  ensure_python();
  py::gil_scoped_acquire gil;
  try
    {
      check_signals();
      return body();
    }
  catch (py::error_already_set& error)
    {
      if (error.matches(PyExc_KeyboardInterrupt))
        raise_interrupted();
      throw std::runtime_error(what + " failed in Python:\n" + describe(error));
    }
}

} // namespace stir_priors
