// What all priors of this project share: a parabolic surrogate (OSSPS asks for one), an entry in the list of living
// priors, and the count of voxels at which OSMAPOSL limits the prior's effect.
#pragma once

#include "image_view.h"

#include "stir/recon_buildblock/PriorWithParabolicSurrogate.h"

#include <map>
#include <mutex>

namespace stir_priors {

class WatchedPrior : public stir::PriorWithParabolicSurrogate<Density>
{
public:
  WatchedPrior()
      : id_(next_id())
  {
    std::lock_guard<std::mutex> lock(mutex());
    living()[id_] = this;
  }
  WatchedPrior(const WatchedPrior&) = delete;
  ~WatchedPrior() override
  {
    std::lock_guard<std::mutex> lock(mutex());
    living().erase(id_);
  }

  int id() const { return id_; }
  virtual std::string label() const = 0;
  virtual py::object callback() const { return py::none(); }

  // OSMAPOSL is about to run, and divides by this and the prior's gradient: the sensitivity of all data.
  virtual void prepare_one_step_late(const py::array&) {}

  // OSMAPOSL is about to divide by `sensitivity + gradient / num_subsets` (additive) or `sensitivity (1 + gradient)`.
  void expect_division_by(const Density* sensitivity, int num_subsets, bool multiplicative)
  {
    sensitivity_ = sensitivity;
    num_subsets_ = num_subsets;
    multiplicative_ = multiplicative;
  }

  // The same where the host cannot tell: subset sensitivities in the order in which subsets are used.
  void expect_divisions_by(const std::vector<py::array_t<float>>& sensitivities, bool multiplicative)
  {
    sensitivities_.clear();
    py::list owners;
    for (const auto& array : sensitivities)
      {
        owners.append(array);
        sensitivities_.push_back({ array.data(), std::size_t(array.size()) });
      }
    owners_.reset(owners);
    num_subsets_ = int(sensitivities_.size());
    multiplicative_ = multiplicative;
    num_watched_ = clamped_ = considered_ = 0;
  }

  std::pair<std::size_t, std::size_t> clamped() const { return {clamped_, considered_}; }

  // Says once what was counted since the last call.
  void report_clamping()
  {
    if (considered_ > 0)
      {
        const double percent = 100. * double(clamped_) / double(considered_);
        log(clamped_ > 0 ? "warning" : "info",
            label() + ": OSMAPOSL limited the prior's effect in " + std::to_string(percent)
                + " % of the voxel updates (its denominator stays within a factor 10 of the sensitivity)"
                + (clamped_ > 0 ? "; a smaller penalisation factor, more subiterations at the start without the prior, or "
                                  "OSSPS avoid that"
                                : ""));
      }
    clamped_ = considered_ = num_watched_ = 0;
  }

  static std::map<int, WatchedPrior*>& living()
  {
    static auto* priors = new std::map<int, WatchedPrior*>; // never destroyed: hosts end in any order
    return *priors;
  }
  static std::mutex& mutex()
  {
    static auto* result = new std::mutex;
    return *result;
  }

protected:
  void count_clamped(const Density& gradient)
  {
    if (sensitivity_ != nullptr)
      count(gradient.begin_all_const(), gradient.end_all_const(), sensitivity_->begin_all_const());
    else if (!sensitivities_.empty())
      {
        const auto& sensitivity = sensitivities_[num_watched_++ % sensitivities_.size()];
        if (sensitivity.second == grid_of(gradient).size())
          count(gradient.begin_all_const(), gradient.end_all_const(), sensitivity.first);
      }
    sensitivity_ = nullptr;
  }

private:
  template <typename Iterator, typename Sensitivity>
  void count(Iterator gradient, const Iterator end, Sensitivity sensitivity)
  {
    for (; gradient != end; ++gradient, ++sensitivity)
      {
        const float s = *sensitivity;
        if (!(s > 0))
          continue;
        const float ratio = multiplicative_ ? 1 + *gradient : 1 + *gradient / (num_subsets_ * s);
        ++considered_;
        clamped_ += ratio < .1F || ratio > 10.F;
      }
  }

  static int next_id()
  {
    static int last = 0;
    std::lock_guard<std::mutex> lock(mutex());
    return ++last;
  }

  const int id_;
  const Density* sensitivity_ = nullptr;
  std::vector<std::pair<const float*, std::size_t>> sensitivities_; // arrays in C order, which `owners_` keeps
  Reference owners_;
  int num_subsets_ = 1;
  bool multiplicative_ = false;
  std::size_t num_watched_ = 0, clamped_ = 0, considered_ = 0;
};

} // namespace stir_priors
