// The names that this project adds to STIR's registries.
#pragma once

#include "block.h"

namespace stir_priors {

// Adds the names; throws if another copy of this code has done so before.
void register_all();

// Names in the registries of priors and of data processors, with those of STIR itself.
std::vector<std::string> prior_names();
std::vector<std::string> processor_names();

} // namespace stir_priors
