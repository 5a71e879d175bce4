# For sites that build STIR themselves: all of STIR's programs then know the priors and filters of this folder.
#
# STIR's extension mechanism reads this file if its variable STIR_LOCAL names the folder that it is in:
#   cmake -DSTIR_LOCAL=<this folder> -DPython_EXECUTABLE=<a Python with sirf-diffusion and pybind11> <STIR's sources>
# That Python needs a shared library (libpython3.x.so). With an extra_stir_dirs.cmake of your own, put
#   include(<this folder>/extra_stir_dirs.cmake)
# into it. Programs built this way do not check a parameter file: run stir-diffusion check first.

find_package(Python REQUIRED COMPONENTS Interpreter Development.Embed)
set(PYBIND11_FINDPYTHON ON)
execute_process(COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir OUTPUT_VARIABLE pybind11_DIR
                OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
find_package(pybind11 CONFIG REQUIRED)

get_filename_component(STIR_PRIORS_FOLDER "${CMAKE_CURRENT_LIST_DIR}" ABSOLUTE)
get_filename_component(STIR_PRIORS_PARENT "${STIR_PRIORS_FOLDER}/.." ABSOLUTE)

# One file, so that the declarations are there before they are registered when a program starts.
set(STIR_PRIORS_START "${CMAKE_CURRENT_BINARY_DIR}/stir_priors_registries.cxx")
file(CONFIGURE OUTPUT "${STIR_PRIORS_START}" @ONLY CONTENT [=[
#include "@STIR_PRIORS_FOLDER@/src/registration.cxx"
namespace {
const bool registered = (stir_priors::register_all(), true);
}
]=])

set(STIR_PRIORS_SOURCES "${STIR_PRIORS_START}" "${STIR_PRIORS_FOLDER}/src/python_host.cxx")
set_source_files_properties(${STIR_PRIORS_SOURCES} PROPERTIES COMPILE_DEFINITIONS
  "STIR_PRIORS_PYTHON=\"${Python_EXECUTABLE}\";STIR_PRIORS_ROOT=\"${STIR_PRIORS_PARENT}\"")
list(APPEND STIR_REGISTRIES ${STIR_PRIORS_SOURCES})

# STIR makes its targets after this file, in this folder and those below it.
include_directories(SYSTEM ${pybind11_INCLUDE_DIRS} ${Python_INCLUDE_DIRS})
link_libraries(Python::Python)
