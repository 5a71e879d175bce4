// Priors whose numbers come from a Python object: `prior type := Python` and `prior type := Diffusion Score`.
#pragma once

#include "block.h"
#include "watched_prior.h"

#include "stir/RegisteredParsingObject.h"
#include "stir/Succeeded.h"

#include <cmath>
#include <memory>

namespace stir_priors {

// The Python object has value(x), gradient(x, out), and optionally curvature(x, out) and hessian_times(x, v, out), all
// without the penalisation factor, and what set_up_object() calls.
class ForwardingPrior : public WatchedPrior
{
public:
  stir::Succeeded set_up(stir::shared_ptr<const Density> const& target) override
  {
    if (WatchedPrior::set_up(target) != stir::Succeeded::yes)
      return stir::Succeeded::no;
    this->report_clamping();
    num_gradients_ = 0;
    call("set_up", [&] { set_up_object(object(), *target); });
    return stir::Succeeded::yes;
  }

  double compute_value(const Density& x) override
  {
    this->check(x);
    if (this->penalisation_factor == 0)
      return 0.;
    return call("value", [&] {
      const ReadView view(x);
      const double value = py::cast<double>(py::float_(object().attr("value")(view.array())));
      if (!std::isfinite(value))
        throw std::runtime_error(where("value") + " is not a finite number");
      return this->penalisation_factor * value;
    });
  }

  void compute_gradient(Density& gradient, const Density& x) override
  {
    this->check(x);
    if (this->penalisation_factor == 0)
      {
        gradient.fill(0.F);
        return;
      }
    ++num_gradients_;
    call("gradient", [&] { fill("gradient", gradient, x, this->penalisation_factor); });
    this->count_clamped(gradient);
  }

  void parabolic_surrogate_curvature(Density& curvature, const Density& x) override
  {
    this->check(x);
    // STIR's OSSPS divides by twice this, so that half of the Hessian's bound is what it needs.
    call("curvature", [&] { fill("curvature", curvature, x, this->penalisation_factor / 2); });
  }

  bool parabolic_surrogate_curvature_depends_on_argument() const override { return flag("curvature_depends_on_image", true); }

  bool is_convex() const override { return flag("is_convex", false); }

  void accumulate_Hessian_times_input(Density& output, const Density& x, const Density& input) const override
  {
    this->check(x);
    const std::unique_ptr<Density> product(output.get_empty_copy());
    call("hessian_times", [&] {
      const ReadView at(x), direction(input);
      WriteView result(*product);
      result.spoil();
      expect_nothing("hessian_times", object().attr("hessian_times")(at.array(), direction.array(), result.array()));
      finish("hessian_times", result, this->penalisation_factor);
    });
    output += *product;
  }

  // With the diagonal bound of the Hessian, as its name promises no more than an approximation.
  void add_multiplication_with_approximate_Hessian(Density& output, const Density& input) const override
  {
    const std::unique_ptr<Density> product(output.get_empty_copy());
    call("curvature", [&] { fill("curvature", *product, input, this->penalisation_factor); });
    auto in = input.begin_all_const();
    auto bound = product->begin_all_const();
    for (auto out = output.begin_all(); out != output.end_all(); ++out, ++in, ++bound)
      *out += *bound * *in;
  }

  double compute_gradient_times_input(const Density& input, const Density& x) // new in STIR 6.3, hence no `override`
  {
    const std::unique_ptr<Density> gradient(x.get_empty_copy());
    compute_gradient(*gradient, x);
    double sum = 0.;
    auto in = input.begin_all_const();
    for (auto out = gradient->begin_all_const(); out != gradient->end_all_const(); ++out, ++in)
      sum += double(*out) * double(*in);
    return sum;
  }

  void prepare_one_step_late(const py::array& sensitivity) override
  {
    if (this->penalisation_factor == 0)
      return;
    call("prepare_one_step_late", [&] {
      if (py::hasattr(object(), "prepare_one_step_late"))
        object().attr("prepare_one_step_late")(sensitivity, this->penalisation_factor);
    });
  }

  py::object callback() const override { return py::reinterpret_borrow<py::object>(object()); }

protected:
  void make(const Block& block, const Keys& values, const Context& context)
  {
    name_ = block.name;
    make_object(object_, "make_prior", "prior type := " + name_, block, values, context);
  }

private:
  py::handle object() const
  {
    if (!object_)
      throw std::runtime_error("prior type := " + name_ + " has no Python object: its parameters were not parsed");
    return object_.get();
  }

  std::string where(const char* method) const
  {
    return "prior type := " + name_ + ": " + method + " at subiteration " + std::to_string(num_gradients_)
           + " (gradients counted since set-up)";
  }

  template <typename Body>
  auto call(const char* method, Body&& body) const -> decltype(body())
  {
    return with_python(where(method), std::forward<Body>(body));
  }

  void fill(const char* method, Density& out, const Density& x, float factor) const
  {
    const ReadView view(x);
    WriteView result(out);
    result.spoil();
    expect_nothing(method, object().attr(method)(view.array(), result.array()));
    finish(method, result, factor);
  }

  void finish(const char* method, WriteView& result, float factor) const
  {
    const std::size_t bad = scale_and_count_nonfinite(result.data(), result.size(), factor);
    if (bad > 0)
      throw std::runtime_error(where(method) + " has " + std::to_string(bad) + " NaN or infinite values of "
                               + std::to_string(result.size()));
    result.commit();
  }

  void expect_nothing(const char* method, const py::object& returned) const
  {
    if (!returned.is_none())
      throw std::runtime_error(where(method) + " returned something: it must fill its argument `out` (out[...] = ...) instead");
  }

  bool flag(const char* name, bool otherwise) const
  {
    if (!object_)
      return otherwise;
    return call(name, [&] {
      py::object value = py::getattr(object(), name, py::bool_(otherwise));
      return py::cast<bool>(PyCallable_Check(value.ptr()) ? value() : value);
    });
  }

  Reference object_;
  std::string name_ = "Python";
  int num_gradients_ = 0;
};

// A class of its own in STIR's registry for each block of keys.
template <const Block& block>
class RegisteredPrior : public stir::RegisteredParsingObject<RegisteredPrior<block>, stir::GeneralisedPrior<Density>, ForwardingPrior>
{
  using base_type = stir::RegisteredParsingObject<RegisteredPrior<block>, stir::GeneralisedPrior<Density>, ForwardingPrior>;

public:
  static const char* const registered_name;

  RegisteredPrior() { set_defaults(); }

  static stir::GeneralisedPrior<Density>* read(std::istream* in)
  {
    auto prior = std::make_unique<RegisteredPrior>();
    if (in == nullptr)
      prior->ask_parameters();
    else
      {
        prior->context_ = look_ahead(*in, block, keys());
        if (!prior->parse(*in))
          throw ParameterError("prior type := " + std::string(block.name) + ": its parameters cannot be read");
      }
    return prior.release();
  }

  static void register_it() { RegisteredPrior::registry().add_to_registry(block.name, &RegisteredPrior::read); }

  std::string label() const override { return std::string("prior type := ") + block.name; }

protected:
  void set_defaults() override
  {
    ForwardingPrior::set_defaults();
    values_ = keys();
    for (const auto& value : values_)
      if (value.first == factor_key)
        this->penalisation_factor = std::stof(value.second);
  }

  void initialise_keymap() override
  {
    ForwardingPrior::initialise_keymap();
    this->parser.add_start_key(std::string(block.name) + " Parameters");
    for (auto& value : values_)
      if (value.first != factor_key)
        this->parser.add_key(value.first, &value.second);
    this->parser.add_stop_key(std::string("END ") + block.name + " Parameters");
  }

  bool post_processing() override
  {
    if (ForwardingPrior::post_processing())
      return true;
    this->make(block, values_, context_);
    return false;
  }

private:
  static const Keys& keys()
  {
    static const Keys result = ask_keys(block);
    return result;
  }

  Keys values_;
  Context context_;
};

template <const Block& block>
const char* const RegisteredPrior<block>::registered_name = block.name;

} // namespace stir_priors
