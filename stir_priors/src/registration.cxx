#include "registration.h"

#include "forwarding_prior.h"
#include "forwarding_processor.h"
#include "quadratic_anchor.h"

#include "stir/BasicCoordinate.h"
#include "stir/IndexRange.h"
#include "stir/config.h"

#include <array>
#include <chrono>
#include <sstream>

namespace stir_priors {

extern const Block python_prior, score_prior, python_processor, denoiser, sampler;
const Block python_prior{ "prior", "Python" };
const Block score_prior{ "prior", "Diffusion Score" };
const Block python_processor{ "data processor", "Python" };
const Block denoiser{ "data processor", "Diffusion Denoiser" };
const Block sampler{ "data processor", "Diffusion Sampler" };

namespace {

struct Entry
{
  const Block& block;
  void (*register_it)();
};

const std::vector<Entry>&
priors()
{
  static const std::vector<Entry> entries{ { python_prior, &RegisteredPrior<python_prior>::register_it },
                                           { score_prior, &RegisteredPrior<score_prior>::register_it },
                                           { QuadraticAnchor::block(), &QuadraticAnchor::register_it } };
  return entries;
}

const std::vector<Entry>&
processors()
{
  static const std::vector<Entry> entries{ { python_processor, &RegisteredProcessor<python_processor>::register_it },
                                           { denoiser, &RegisteredProcessor<denoiser>::register_it },
                                           { sampler, &RegisteredProcessor<sampler>::register_it } };
  return entries;
}

// A prior of any registered name, STIR's own too, at one image: value, gradient, and what each gradient took.
py::dict
evaluate(const std::string& text, const py::array_t<float, py::array::c_style | py::array::forcecast>& image,
         const std::array<float, 3>& voxel_size, int repeats)
{
  std::istringstream file(text);
  std::string key, name;
  if (image.ndim() != 3 || !next_line(file, key, name) || key != "prior type")
    throw py::value_error("expected the text of a prior, from 'prior type := ...' on, and an image [z, y, x]");
  const std::unique_ptr<stir::GeneralisedPrior<Density>> prior(
      stir::GeneralisedPrior<Density>::read_registered_object(&file, name));
  if (!prior)
    throw py::value_error("no prior of the name '" + name + "' is registered");
  const int nz = int(image.shape(0)), ny = int(image.shape(1)), nx = int(image.shape(2));
  const stir::IndexRange<3> range(stir::make_coordinate(0, -(ny / 2), -(nx / 2)),
                                  stir::make_coordinate(nz - 1, -(ny / 2) + ny - 1, -(nx / 2) + nx - 1));
  const stir::shared_ptr<Density> x(new stir::VoxelsOnCartesianGrid<float>(
      range, stir::CartesianCoordinate3D<float>(0.F, 0.F, 0.F),
      stir::CartesianCoordinate3D<float>(voxel_size[0], voxel_size[1], voxel_size[2])));
  std::copy(image.data(), image.data() + image.size(), x->begin_all());
  const std::unique_ptr<Density> gradient(x->get_empty_copy());
  prior->set_up(x);
  std::vector<double> seconds;
  for (int k = 0; k < repeats; ++k)
    {
      const auto start = std::chrono::steady_clock::now();
      prior->compute_gradient(*gradient, *x);
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
  py::array_t<float> copy({ nz, ny, nx });
  std::copy(gradient->begin_all_const(), gradient->end_all_const(), copy.mutable_data());
  py::dict result;
  result["value"] = prior->compute_value(*x);
  result["gradient"] = copy;
  result["seconds"] = seconds;
  return result;
}

WatchedPrior&
prior_of(int id)
{
  const auto found = WatchedPrior::living().find(id);
  if (found == WatchedPrior::living().end())
    throw py::key_error("no prior " + std::to_string(id) + " is alive");
  return *found->second;
}

} // namespace

void
register_all()
{
  for (const Entry& entry : priors())
    if (is_registered<stir::GeneralisedPrior<Density>>(entry.block.name))
      throw std::runtime_error(std::string("the prior '") + entry.block.name
                               + "' is already registered in this process: another copy of the shim was loaded before");
  for (const Entry& entry : processors())
    if (is_registered<stir::DataProcessor<Density>>(entry.block.name))
      throw std::runtime_error(std::string("the data processor '") + entry.block.name
                               + "' is already registered in this process: another copy of the shim was loaded before");
  for (const Entry& entry : priors())
    entry.register_it();
  for (const Entry& entry : processors())
    entry.register_it();
}

std::vector<std::string>
prior_names()
{
  return registered_names<stir::GeneralisedPrior<Density>>();
}

std::vector<std::string>
processor_names()
{
  return registered_names<stir::DataProcessor<Density>>();
}

void
bind(py::module_& module)
{
  module.doc() = "C++ side of stir_priors: what it registered in STIR, and the priors that are alive.";
  module.attr("stir_version") = STIR_VERSION_STRING;
  module.def("prior_names", &prior_names, "Names in STIR's registry of priors, STIR's own included.");
  module.def("processor_names", &processor_names, "Names in STIR's registry of data processors.");
  module.def("evaluate", &evaluate, py::arg("text"), py::arg("image"), py::arg("voxel_size"), py::arg("repeats") = 1,
             "Value, gradient [z, y, x] and seconds per gradient of the prior in a piece of a parameter file.");
  module.def(
      "living_priors",
      [] {
        py::list result;
        for (const auto& entry : WatchedPrior::living())
          result.append(py::make_tuple(entry.first, entry.second->label(), entry.second->callback()));
        return result;
      },
      "(id, label, Python object) of every prior of this project that is alive, oldest first.");
  module.def(
      "watch",
      [](int id, const std::vector<py::array_t<float>>& sensitivities, const py::array_t<float>& total, bool multiplicative) {
        prior_of(id).expect_divisions_by(sensitivities, multiplicative);
        prior_of(id).prepare_one_step_late(total);
      },
      "Prepare a prior for OSMAPOSL, given subset sensitivities in order of use and their sum (ones if multiplicative), and "
      "count from now on where its effect is limited.");
  module.def("clamped", [](int id) { return prior_of(id).clamped(); }, "(limited voxel updates, all of them) since `watch`.");
  module.def("report_clamping", [](int id) { prior_of(id).report_clamping(); }, "Log the count once, and start anew.");
  module.def(
      "moving_anchors",
      [] {
        py::list result;
        for (const auto& entry : WatchedPrior::living())
          if (auto* anchor = dynamic_cast<QuadraticAnchor*>(entry.second); anchor != nullptr && anchor->is_moving())
            result.append(entry.first);
        return result;
      },
      "Ids of the priors `Quadratic Anchor` that have no anchor file.");
  module.def(
      "move_anchor",
      [](int id, const py::array_t<float, py::array::c_style | py::array::forcecast>& image, float factor) {
        dynamic_cast<QuadraticAnchor&>(prior_of(id)).move_to(image, factor);
      },
      "Give a moving anchor its image and penalisation factor.");
}

} // namespace stir_priors
