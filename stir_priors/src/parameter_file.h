// What the executables share: a parameter file that is checked before STIR reads it, and errors as exit codes.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace stir_priors {

constexpr int user_error = 2;
constexpr int interrupted_code = 130;

// Names of priors and filters in the file that nothing is registered for, one message each: STIR would drop them.
std::vector<std::string> unknown_names(const std::string& filename);

// Prints "kind<TAB>name" for every name in the registries that parameter files choose from; the exit code.
int print_registered();

// Registers the names, checks the parameter file, and runs `body`; the exit code. 2 for what the user can put right in the
// file, 130 after Ctrl-C, 1 for other errors. Messages go to stderr.
int run_program(const std::string& program, const std::string& parameter_filename, const std::function<bool()>& body);

} // namespace stir_priors
