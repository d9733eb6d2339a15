// Why a request can never run at an engine, as whoever asked for it is told.
#pragma once

#include <string>
#include <utility>

#include "tensor/check.h"

namespace rtp_llm {

class InvalidRequest : public InvalidArgument {
 public:
  // `type` names a class of rtp_llm.errors, `param` a field of Request or SamplingParams.
  InvalidRequest(std::string type, std::string param, const std::string& message)
      : InvalidArgument(message), type_(std::move(type)), param_(std::move(param)) {}

  const std::string& type() const { return type_; }
  const std::string& param() const { return param_; }

 private:
  std::string type_, param_;
};

}  // namespace rtp_llm
