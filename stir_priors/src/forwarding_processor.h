// Data processors (filters) whose work is done by a Python object with apply(x), in place, and optionally set_up(geometry).
#pragma once

#include "block.h"
#include "image_view.h"

#include "stir/DataProcessor.h"
#include "stir/RegisteredParsingObject.h"
#include "stir/Succeeded.h"

#include <memory>

namespace stir_priors {

template <const Block& block>
class RegisteredProcessor
    : public stir::RegisteredParsingObject<RegisteredProcessor<block>, stir::DataProcessor<Density>, stir::DataProcessor<Density>>
{
public:
  static const char* const registered_name;

  RegisteredProcessor() { set_defaults(); }

  static stir::DataProcessor<Density>* read(std::istream* in)
  {
    auto processor = std::make_unique<RegisteredProcessor>();
    if (in == nullptr)
      processor->ask_parameters();
    else
      {
        processor->context_ = look_ahead(*in, block, keys());
        if (!static_cast<stir::ParsingObject&>(*processor).parse(*in))
          throw ParameterError(std::string(block.name) + ": its parameters cannot be read");
      }
    return processor.release();
  }

  static void register_it() { RegisteredProcessor::registry().add_to_registry(block.name, &RegisteredProcessor::read); }

protected:
  void set_defaults() override { values_ = keys(); }

  void initialise_keymap() override
  {
    this->parser.add_start_key(std::string(block.name) + " Parameters");
    for (auto& value : values_)
      this->parser.add_key(value.first, &value.second);
    this->parser.add_stop_key(std::string("END ") + block.name + " Parameters");
  }

  bool post_processing() override
  {
    make_object(object_, "make_processor", std::string("filter type := ") + block.name, block, values_, context_);
    return false;
  }

  stir::Succeeded virtual_set_up(const Density& image) override
  {
    num_calls_ = 0;
    with_python(std::string(block.name) + ": set_up", [&] { set_up_object(object(), image); });
    return stir::Succeeded::yes;
  }

  void virtual_apply(Density& image) const override
  {
    const std::string what = std::string(block.name) + ": call " + std::to_string(++num_calls_);
    with_python(what, [&] {
      WriteView view(image);
      if (!py::object(object().attr("apply")(view.array())).is_none())
        throw std::runtime_error(what + " returned something: apply(x) must change x in place (x[...] = ...) instead");
      const std::size_t bad = scale_and_count_nonfinite(view.data(), view.size(), 1.F);
      if (bad > 0)
        throw std::runtime_error(what + " left " + std::to_string(bad) + " NaN or infinite values of "
                                 + std::to_string(view.size()));
      view.commit();
    });
  }

  void virtual_apply(Density& out, const Density& in) const override
  {
    std::copy(in.begin_all_const(), in.end_all_const(), out.begin_all());
    virtual_apply(out);
  }

private:
  static const Keys& keys()
  {
    static const Keys result = ask_keys(block);
    return result;
  }

  py::handle object() const
  {
    if (!object_)
      throw std::runtime_error(std::string(block.name) + " has no Python object: its parameters were not parsed");
    return object_.get();
  }

  Reference object_;
  Keys values_;
  Context context_;
  mutable int num_calls_ = 0;
};

template <const Block& block>
const char* const RegisteredProcessor<block>::registered_name = block.name;

} // namespace stir_priors
