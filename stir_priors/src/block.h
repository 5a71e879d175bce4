// The blocks of a parameter file that this project owns: their keys, and a reading that refuses what STIR would drop.
#pragma once

#include "python_host.h"

#include "stir/interfile_keyword_functions.h"

#include <pybind11/stl.h>

#include <iostream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace stir_priors {

// What the user can put right in the parameter file.
struct ParameterError : std::runtime_error
{
  using std::runtime_error::runtime_error;
};

struct Block
{
  const char* kind; // "prior" or "data processor"
  const char* name;
};

// A block's keys with their defaults; all text, which Python makes values of.
using Keys = std::vector<std::pair<std::string, std::string>>;

constexpr const char* factor_key = "penalisation factor"; // that of every prior, which STIR itself reads

// Keys and defaults as Python lists them, asked when such a block is first met: registering the names needs no Python.
inline Keys
ask_keys(const Block& block)
{
  return with_python(std::string(block.name) + ": keys", [&] {
    Keys keys;
    const py::dict found = py::module_::import(callbacks).attr("defaults")(block.kind, block.name);
    for (const auto& item : found)
      keys.emplace_back(py::cast<std::string>(item.first), py::cast<std::string>(item.second));
    return keys;
  });
}

// One line `key := value` of a parameter file, continuation lines joined; false at the end of the file.
inline bool
next_line(std::istream& in, std::string& key, std::string& value)
{
  std::string line, part;
  if (!std::getline(in, line))
    return false;
  auto trimmed = [](const std::string& text) {
    const auto first = text.find_first_not_of(" \t\r");
    return first == std::string::npos ? std::string() : text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
  };
  while (true)
    {
      if (!line.empty() && line.back() == '\r')
        line.pop_back();
      if (line.empty() || line.back() != '\\' || !std::getline(in, part))
        break;
      line.back() = ' ';
      line += part;
    }
  const auto colon = line.find(":=");
  key = stir::standardise_interfile_keyword(line.substr(0, colon));
  value = colon == std::string::npos ? std::string() : trimmed(line.substr(colon + 2));
  if (!key.empty() && key[0] == ';')
    key.clear();
  return true;
}

// What the surrounding file says, outside of the block: `key -> value`, for settings that depend on each other.
using Context = std::map<std::string, std::string>;

// Reads ahead from where a block begins, and puts the stream back. Throws for keys that the block does not have.
inline Context
look_ahead(std::istream& in, const Block& block, const Keys& keys)
{
  Context context;
  const auto here = in.tellg();
  if (here == std::istream::pos_type(-1))
    {
      in.clear();
      return context; // not a file: nothing can be checked beforehand
    }
  std::set<std::string> known;
  std::string listed;
  for (const auto& key : keys)
    {
      known.insert(stir::standardise_interfile_keyword(key.first));
      listed += std::string(listed.empty() ? "" : ", ") + key.first;
    }
  const std::string start = stir::standardise_interfile_keyword(std::string(block.name) + " Parameters");
  const std::string stop = stir::standardise_interfile_keyword("END " + std::string(block.name) + " Parameters");
  std::string key, value;
  bool first = true, ended = false;
  while (!ended && next_line(in, key, value))
    {
      if (key.empty())
        continue;
      if (first && key != start)
        throw ParameterError("parameter file: '" + std::string(block.name) + " Parameters :=' must follow, found '" + key
                                 + "'");
      if (key == stop)
        ended = true;
      else if (!first && known.count(key) == 0)
        throw ParameterError("parameter file: the block '" + std::string(block.name) + "' has no key '" + key
                                 + "'; its keys are: " + listed);
      first = false;
    }
  if (!ended)
    throw ParameterError("parameter file: the block '" + std::string(block.name) + "' does not end with 'END "
                             + block.name + " Parameters :='");
  in.clear();
  in.seekg(0);
  bool named = false;
  while (next_line(in, key, value))
    {
      if (key.empty())
        continue;
      if (!named && key.find("kosmaposl") != std::string::npos)
        throw ParameterError(std::string(block.name)
                                 + " cannot be used in KOSMAPOSL: it would be given kernel coefficients, not activity");
      named = true;
      context.emplace(key, value);
    }
  in.clear();
  in.seekg(here);
  return context;
}

// Makes the Python object behind a block; what Python says against its values is an error in the parameter file.
inline void
make_object(Reference& object, const char* maker, const std::string& what, const Block& block, const Keys& values,
            const Context& context)
{
  try
    {
      with_python(what, [&] {
        py::dict options;
        for (const auto& value : values)
          options[value.first.c_str()] = value.second;
        object.reset(py::module_::import(callbacks).attr(maker)(block.name, options, context));
      });
    }
  catch (const std::runtime_error& problem)
    {
      throw ParameterError(problem.what());
    }
}

// The names in the registry of `Root`, one per registered class.
template <typename Root>
std::vector<std::string>
registered_names()
{
  std::stringstream stream;
  Root::list_registered_names(stream);
  std::vector<std::string> names;
  for (std::string name; std::getline(stream, name);)
    names.push_back(name);
  return names;
}

template <typename Root>
bool
is_registered(const std::string& name)
{
  const std::string wanted = stir::standardise_interfile_keyword(name);
  for (const std::string& found : registered_names<Root>())
    if (stir::standardise_interfile_keyword(found) == wanted)
      return true;
  return false;
}

} // namespace stir_priors
