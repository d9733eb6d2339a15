// Error types of the native engine and the check that throws them.
//
// An expected outcome is a value; a broken precondition throws one of these with the numbers in the
// message. The bindings translate each type to its Python twin in rtp_llm/errors.py.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace rtp_llm {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller passed a value that can never work (ValueError in Python).
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

// A resource that was asked for does not exist here: memory, an ISA, a device (RuntimeError).
class Unavailable : public Error {
 public:
  using Error::Error;
};

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// check(id < size, "block ", id, " out of range, pool has ", size). Throws InvalidArgument.
// The message is built only on failure; don't put it where a token pays for it.
template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (!holds) [[unlikely]]
    throw InvalidArgument(concat(parts...));
}

}  // namespace rtp_llm
