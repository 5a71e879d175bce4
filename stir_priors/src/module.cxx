// The extension module that STIR-Python and SIRF processes load: importing it registers the names.
#include "registration.h"

namespace stir_priors {
void bind(py::module_& module);
}

PYBIND11_MODULE(_shim, module)
{
  stir_priors::register_all();
  stir_priors::bind(module);
}
