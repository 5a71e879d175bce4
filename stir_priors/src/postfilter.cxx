// One filter on one image, with this project's filters.
#include "image_view.h"
#include "parameter_file.h"

#include "stir/IO/OutputFileFormat.h"
#include "stir/PostFiltering.h"
#include "stir/Succeeded.h"

#include <iostream>
#include <memory>

using namespace stir_priors;

int
main(int argc, char** argv)
{
  if (argc != 4)
    {
      std::cerr << "Usage: postfilter output_filename input_header parameter_file" << std::endl;
      return user_error;
    }
  return run_program("postfilter", argv[3], [argv] {
    stir::PostFiltering<Density> filter;
    if (!filter.parse(argv[3]) || filter.is_filter_null())
      throw std::runtime_error(std::string(argv[3]) + " sets no filter ('PostFilteringParameters :=', 'Postfilter type := ...')");
    const std::unique_ptr<Density> image(Density::read_from_file(argv[2]));
    if (!image)
      throw std::runtime_error(std::string(argv[2]) + " is not an image that STIR can read");
    return filter.process_data(*image) == stir::Succeeded::yes
           && stir::OutputFileFormat<Density>::default_sptr()->write_to_file(argv[1], *image) == stir::Succeeded::yes;
  });
}
