// `prior type := Quadratic Anchor`: beta/2 sum_j w_j (x_j - v_j)^2, all in C++.
#pragma once

#include "block.h"
#include "watched_prior.h"

#include "stir/RegisteredParsingObject.h"
#include "stir/Succeeded.h"

#include <memory>

namespace stir_priors {

// Without `anchor filename` the anchor is a moving one, set from outside (Diffusion Sampler); until then the penalty is 0.
class QuadraticAnchor
    : public stir::RegisteredParsingObject<QuadraticAnchor, stir::GeneralisedPrior<Density>, WatchedPrior>
{
  using base_type = stir::RegisteredParsingObject<QuadraticAnchor, stir::GeneralisedPrior<Density>, WatchedPrior>;

public:
  static constexpr const char* registered_name = "Quadratic Anchor";

  QuadraticAnchor() { set_defaults(); }

  static const Block& block()
  {
    static const Block result{ "prior", registered_name };
    return result;
  }

  static stir::GeneralisedPrior<Density>* read(std::istream* in)
  {
    auto prior = std::make_unique<QuadraticAnchor>();
    if (in == nullptr)
      prior->ask_parameters();
    else
      {
        look_ahead(*in, block(), { { factor_key, "" }, { "anchor filename", "" }, { "weight filename", "" } });
        if (!prior->parse(*in))
          throw ParameterError("prior type := Quadratic Anchor: its parameters cannot be read");
      }
    return prior.release();
  }

  static void register_it() { QuadraticAnchor::registry().add_to_registry(registered_name, &QuadraticAnchor::read); }

  std::string label() const override { return std::string("prior type := ") + registered_name; }
  bool is_moving() const { return anchor_filename_.empty(); }

  // Gives a moving anchor its image, of the grid that the prior was set up for, and its strength.
  void move_to(const py::array_t<float, py::array::c_style | py::array::forcecast>& image, float factor)
  {
    if (!template_)
      throw std::runtime_error(label() + " must be set up before its anchor is moved");
    if (std::size_t(image.size()) != grid_of(*template_).size())
      throw std::runtime_error(label() + ": the new anchor has " + std::to_string(image.size()) + " voxels, expected "
                               + std::to_string(grid_of(*template_).size()));
    anchor_.reset(template_->get_empty_copy());
    std::copy(image.data(), image.data() + image.size(), anchor_->begin_all());
    this->penalisation_factor = factor;
  }

  stir::Succeeded set_up(stir::shared_ptr<const Density> const& target) override
  {
    if (WatchedPrior::set_up(target) != stir::Succeeded::yes)
      return stir::Succeeded::no;
    this->report_clamping();
    template_.reset(target->get_empty_copy());
    if (is_moving())
      anchor_.reset();
    check_grid(anchor_.get(), "anchor", *target);
    check_grid(weight_.get(), "weight", *target);
    return stir::Succeeded::yes;
  }

  double compute_value(const Density& x) override
  {
    double sum = 0.;
    for_each(x, [&sum](float, float w, float difference) { sum += double(w) * difference * difference; });
    return sum * this->penalisation_factor / 2;
  }

  void compute_gradient(Density& gradient, const Density& x) override
  {
    auto out = gradient.begin_all();
    const float factor = this->penalisation_factor;
    for_each(x, [&](float, float w, float difference) { *out++ = factor * w * difference; });
    this->count_clamped(gradient);
  }

  double compute_gradient_times_input(const Density& input, const Density& x) // new in STIR 6.3, hence no `override`
  {
    double sum = 0.;
    auto in = input.begin_all_const();
    for_each(x, [&](float, float w, float difference) { sum += double(w) * difference * double(*in++); });
    return sum * this->penalisation_factor;
  }

  // One row: its only element that is not zero is on the diagonal.
  void compute_Hessian(Density& row, const stir::BasicCoordinate<3, int>& coords, const Density& x) const override
  {
    this->check(x);
    row.fill(0.F);
    if (anchor_)
      row[coords] = this->penalisation_factor * (weight_ ? (*weight_)[coords] : 1.F);
  }

  void compute_Hessian_diagonal(Density& diagonal, const Density& x) const override
  {
    auto out = diagonal.begin_all();
    const float factor = this->penalisation_factor;
    for_each(x, [&](float, float w, float) { *out++ = factor * w; });
  }

  void parabolic_surrogate_curvature(Density& curvature, const Density& x) override
  {
    compute_Hessian_diagonal(curvature, x);
    curvature *= .5F; // STIR's OSSPS divides by twice this
  }

  // A moving anchor's strength changes during a run.
  bool parabolic_surrogate_curvature_depends_on_argument() const override { return is_moving(); }

  void add_multiplication_with_approximate_Hessian(Density& output, const Density& input) const override
  {
    accumulate_Hessian_times_input(output, input, input);
  }

  void accumulate_Hessian_times_input(Density& output, const Density& x, const Density& input) const override
  {
    auto out = output.begin_all();
    auto in = input.begin_all_const();
    const float factor = this->penalisation_factor;
    for_each(x, [&](float, float w, float) { *out++ += factor * w * *in++; });
  }

  bool is_convex() const override { return true; }

protected:
  void set_defaults() override
  {
    WatchedPrior::set_defaults();
    anchor_filename_.clear();
    weight_filename_.clear();
    anchor_.reset();
    weight_.reset();
  }

  void initialise_keymap() override
  {
    WatchedPrior::initialise_keymap();
    this->parser.add_start_key("Quadratic Anchor Parameters");
    this->parser.add_key("anchor filename", &anchor_filename_);
    this->parser.add_key("weight filename", &weight_filename_);
    this->parser.add_stop_key("END Quadratic Anchor Parameters");
  }

  bool post_processing() override
  {
    if (WatchedPrior::post_processing())
      return true;
    anchor_ = read_image("anchor filename", anchor_filename_);
    weight_ = read_image("weight filename", weight_filename_);
    if (weight_)
      for (auto w = weight_->begin_all_const(); w != weight_->end_all_const(); ++w)
        if (!(*w >= 0.F))
          throw ParameterError("weight filename := " + weight_filename_ + ": weights must not be negative");
    return false;
  }

private:
  static std::unique_ptr<Density> read_image(const char* key, const std::string& filename)
  {
    if (filename.empty())
      return nullptr;
    std::unique_ptr<Density> image;
    try
      {
        image.reset(Density::read_from_file(filename));
      }
    catch (std::exception& problem)
      {
        throw ParameterError(std::string(key) + " := " + filename + " cannot be read: " + problem.what());
      }
    if (!image)
      throw ParameterError(std::string(key) + " := " + filename + " cannot be read");
    std::vector<float> voxels(image->begin_all_const(), image->end_all_const());
    if (scale_and_count_nonfinite(voxels.data(), voxels.size(), 1.F) > 0)
      throw ParameterError(std::string(key) + " := " + filename + " holds NaN or infinite values");
    return image;
  }

  void check_grid(const Density* image, const char* what, const Density& target) const
  {
    std::string reason;
    if (image != nullptr && !image->has_same_characteristics(target, reason))
      throw std::runtime_error(label() + ": the " + what + " image is not on the grid of the estimate: " + reason);
  }

  // body(x, weight, x - anchor) for every voxel, in order; differences are 0 before a moving anchor has an image.
  template <typename Body>
  void for_each(const Density& x, Body&& body) const
  {
    this->check(x);
    if (!anchor_)
      {
        for (auto voxel = x.begin_all_const(); voxel != x.end_all_const(); ++voxel)
          body(*voxel, 0.F, 0.F);
        return;
      }
    auto anchor = anchor_->begin_all_const();
    if (weight_)
      {
        auto weight = weight_->begin_all_const();
        for (auto voxel = x.begin_all_const(); voxel != x.end_all_const(); ++voxel, ++anchor, ++weight)
          body(*voxel, *weight, *voxel - *anchor);
      }
    else
      for (auto voxel = x.begin_all_const(); voxel != x.end_all_const(); ++voxel, ++anchor)
        body(*voxel, 1.F, *voxel - *anchor);
  }

  std::string anchor_filename_, weight_filename_;
  std::unique_ptr<Density> anchor_, weight_, template_;
};

} // namespace stir_priors
