// STIR's OSSPS with this project's priors and filters.
#include "image_view.h"
#include "parameter_file.h"

#include "stir/OSSPS/OSSPSReconstruction.h"
#include "stir/Succeeded.h"
#include "stir/num_threads.h"

#include <iostream>

using namespace stir_priors;

int
main(int argc, char** argv)
{
  if (argc == 2 && std::string(argv[1]) == "--registered")
    return print_registered();
  if (argc != 2)
    {
      std::cerr << "Usage: OSSPS parameter_file | OSSPS --registered" << std::endl;
      return user_error;
    }
  return run_program("OSSPS", argv[1], [argv] {
    stir::set_default_num_threads();
    stir::OSSPSReconstruction<Density> reconstruction(argv[1]);
    return reconstruction.reconstruct() == stir::Succeeded::yes;
  });
}
