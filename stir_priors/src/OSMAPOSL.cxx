// STIR's OSMAPOSL with this project's priors and filters.
#include "parameter_file.h"
#include "watched_prior.h"

#include "stir/OSMAPOSL/OSMAPOSLReconstruction.h"
#include "stir/Succeeded.h"
#include "stir/num_threads.h"

#include <iostream>
#include <memory>

using namespace stir_priors;

namespace {

class Reconstruction : public stir::OSMAPOSLReconstruction<Density>
{
public:
  using stir::OSMAPOSLReconstruction<Density>::OSMAPOSLReconstruction;

  void report()
  {
    if (WatchedPrior* prior = watched())
      prior->report_clamping();
  }

  stir::Succeeded set_up(stir::shared_ptr<Density> const& target) override
  {
    if (stir::OSMAPOSLReconstruction<Density>::set_up(target) != stir::Succeeded::yes)
      return stir::Succeeded::no;
    if (WatchedPrior* prior = watched())
      {
        const std::unique_ptr<Density> sensitivity(target->get_empty_copy());
        if (multiplicative())
          sensitivity->fill(1.F);
        else
          for (int subset = 0; subset < this->get_num_subsets(); ++subset)
            *sensitivity += stir::OSMAPOSLReconstruction<Density>::get_subset_sensitivity(subset);
        with_python("OSMAPOSL", [&] { prior->prepare_one_step_late(ReadView(*sensitivity).array()); });
      }
    return stir::Succeeded::yes;
  }

protected:
  // Called just before the prior's gradient, which the result will be compared with.
  const Density& get_subset_sensitivity(const int subset) override
  {
    const Density& sensitivity = stir::OSMAPOSLReconstruction<Density>::get_subset_sensitivity(subset);
    if (WatchedPrior* prior = watched())
      prior->expect_division_by(&sensitivity, this->get_num_subsets(), multiplicative());
    return sensitivity;
  }

private:
  bool multiplicative() const { return this->MAP_model == "multiplicative"; }
  WatchedPrior* watched() { return dynamic_cast<WatchedPrior*>(this->objective_function_sptr->get_prior_ptr()); }
};

} // namespace

int
main(int argc, char** argv)
{
  if (argc == 2 && std::string(argv[1]) == "--registered")
    return print_registered();
  if (argc != 2)
    {
      std::cerr << "Usage: OSMAPOSL parameter_file | OSMAPOSL --registered" << std::endl;
      return user_error;
    }
  return run_program("OSMAPOSL", argv[1], [argv] {
    stir::set_default_num_threads();
    Reconstruction reconstruction(argv[1]);
    const bool done = reconstruction.reconstruct() == stir::Succeeded::yes;
    reconstruction.report();
    return done;
  });
}
