#include "parameter_file.h"

#include "image_view.h"
#include "registration.h"

#include "stir/DataProcessor.h"
#include "stir/recon_buildblock/BackProjectorByBin.h"
#include "stir/recon_buildblock/BinNormalisation.h"
#include "stir/recon_buildblock/ForwardProjectorByBin.h"
#include "stir/recon_buildblock/GeneralisedObjectiveFunction.h"
#include "stir/recon_buildblock/GeneralisedPrior.h"
#include "stir/recon_buildblock/ProjMatrixByBin.h"
#include "stir/recon_buildblock/ProjectorByBinPair.h"

#include <cstdlib>
#include <fstream>
#include <iostream>

namespace stir_priors {

namespace {

bool
ends_with(const std::string& text, const std::string& end)
{
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// `${NAME}` as STIR's parser expands it.
std::string
expanded(std::string text)
{
  for (auto start = text.find("${"); start != std::string::npos; start = text.find("${", start))
    {
      const auto stop = text.find('}', start);
      if (stop == std::string::npos)
        break;
      const char* value = std::getenv(text.substr(start + 2, stop - start - 2).c_str());
      text.replace(start, stop - start + 1, value == nullptr ? "" : value);
    }
  return text;
}

std::string
joined(const std::vector<std::string>& names)
{
  std::string text;
  for (const auto& name : names)
    text += (text.empty() ? "" : ", ") + name;
  return text;
}

template <typename Root>
void
print_names(const char* kind)
{
  for (const auto& name : registered_names<Root>())
    std::cout << kind << '\t' << name << '\n';
}

} // namespace

int
print_registered()
{
  register_all();
  print_names<stir::GeneralisedPrior<Density>>("prior");
  print_names<stir::DataProcessor<Density>>("data processor");
  print_names<stir::GeneralisedObjectiveFunction<Density>>("objective function");
  print_names<stir::ProjectorByBinPair>("projector pair");
  print_names<stir::ProjMatrixByBin>("matrix");
  print_names<stir::BinNormalisation>("bin normalisation");
  print_names<stir::ForwardProjectorByBin>("forward projector");
  print_names<stir::BackProjectorByBin>("back projector");
  return EXIT_SUCCESS;
}

std::vector<std::string>
unknown_names(const std::string& filename)
{
  std::ifstream in(filename);
  if (!in)
    return { filename + ": no such parameter file" };
  std::vector<std::string> problems;
  std::string key, value;
  while (next_line(in, key, value))
    {
      const bool prior = key == "prior type";
      // "post-filter type", "postfilter type", "inter-iteration filter type", "inter-update filter type", ...
      const bool filter = ends_with(key, "filter type") || key.rfind("data processor to apply", 0) == 0;
      value = expanded(value);
      if ((!prior && !filter) || value.empty())
        continue;
      if (prior ? is_registered<stir::GeneralisedPrior<Density>>(value) : is_registered<stir::DataProcessor<Density>>(value))
        continue;
      problems.push_back(filename + ": '" + key + " := " + value + "' is not registered, STIR would leave it out; known are: "
                         + joined(prior ? prior_names() : processor_names()));
    }
  return problems;
}

int
run_program(const std::string& program, const std::string& parameter_filename, const std::function<bool()>& body)
{
  register_all();
  const auto problems = unknown_names(parameter_filename);
  for (const auto& problem : problems)
    std::cerr << program << ": " << problem << std::endl;
  if (!problems.empty())
    return user_error;
  int code = EXIT_FAILURE;
  try
    {
      code = body() ? EXIT_SUCCESS : EXIT_FAILURE;
      if (code != EXIT_SUCCESS)
        std::cerr << program << ": STIR could not do it; see its messages above" << std::endl;
    }
  catch (const ParameterError& problem)
    {
      std::cerr << program << ": " << problem.what() << std::endl;
      code = user_error;
    }
  catch (const std::exception& problem)
    {
      std::cerr << program << ": " << problem.what() << std::endl;
      code = was_interrupted() ? interrupted_code : EXIT_FAILURE;
    }
  finish_python();
  return code;
}

} // namespace stir_priors
