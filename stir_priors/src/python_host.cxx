#include "python_host.h"

#include <cstdlib>
#include <iostream>
#include <stdexcept>

namespace stir_priors {

void bind(py::module_& module);

namespace {

constexpr const char* module_name = "stir_priors._shim";
bool started_here = false;
bool interrupted = false;
PyThreadState* main_thread = nullptr;

void
start_interpreter()
{
  // The executable was compiled for one Python, whose packages (torch, sirf_diffusion) it needs.
  const char* chosen = std::getenv("STIR_DIFFUSION_PYTHON");
  const std::string program = chosen != nullptr && *chosen != '\0' ? chosen : STIR_PRIORS_PYTHON;
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  config.parse_argv = 0;
  PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, program.c_str());
  if (!PyStatus_Exception(status))
    status = Py_InitializeFromConfig(&config);
  PyConfig_Clear(&config);
  if (PyStatus_Exception(status))
    throw std::runtime_error("cannot start Python as " + program + ": " + (status.err_msg ? status.err_msg : "unknown error")
                             + "; set STIR_DIFFUSION_PYTHON to the interpreter that has sirf-diffusion");
  started_here = true;
  py::list path = py::module_::import("sys").attr("path");
  path.append(STIR_PRIORS_ROOT); // last: an installed package comes first
}

void
create_module()
{
  py::dict modules = py::module_::import("sys").attr("modules");
  if (modules.contains(module_name))
    return;
  auto* definition = new PyModuleDef(); // modules live as long as the process
  py::module_ module = py::module_::create_extension_module(module_name, nullptr, definition);
  bind(module);
  modules[module_name] = module;
}

} // namespace

void
ensure_python()
{
  static bool done = false;
  if (done)
    return;
  if (!Py_IsInitialized())
    {
      try
        {
          start_interpreter();
          create_module();
          py::module_::import(callbacks).attr("set_up_logging")();
        }
      catch (py::error_already_set& error)
        {
          throw std::runtime_error(std::string("cannot use Python (") + STIR_PRIORS_PYTHON + "):\n" + describe(error)
                                   + "set STIR_DIFFUSION_PYTHON to the interpreter that has sirf-diffusion");
        }
      main_thread = PyEval_SaveThread(); // callbacks take the GIL themselves
    }
  else
    {
      py::gil_scoped_acquire gil;
      create_module();
    }
  done = true;
}

void
finish_python()
{
  if (!started_here || main_thread == nullptr)
    return;
  PyEval_RestoreThread(main_thread);
  main_thread = nullptr;
  Py_FinalizeEx();
}

bool
was_interrupted()
{
  return interrupted;
}

void
check_signals()
{
  if (PyErr_CheckSignals() != 0)
    throw py::error_already_set();
}

void
raise_interrupted()
{
  interrupted = true;
  throw std::runtime_error("interrupted by Ctrl-C; estimates that were saved before are complete");
}

void
log(const char* level, const std::string& text)
{
  if (!Py_IsInitialized())
    {
      std::cerr << "stir_priors: " << text << std::endl;
      return;
    }
  py::gil_scoped_acquire gil;
  try
    {
      py::module_::import("logging").attr("getLogger")("stir_priors").attr(level)("%s", text);
    }
  catch (py::error_already_set& error)
    {
      std::cerr << "stir_priors: " << text << std::endl;
    }
}

std::string
describe(py::error_already_set& error)
{
  try
    {
      const py::object trace = error.trace() ? error.trace() : py::none();
      const py::module_ traceback = py::module_::import("traceback");
      // First what is wrong, then where.
      const py::object what = traceback.attr("format_exception_only")(error.type(), error.value());
      const py::object lines = traceback.attr("format_exception")(error.type(), error.value(), trace);
      return py::cast<std::string>(py::str("").attr("join")(what)) + py::cast<std::string>(py::str("").attr("join")(lines));
    }
  catch (py::error_already_set&)
    {
      return error.what();
    }
}

} // namespace stir_priors
