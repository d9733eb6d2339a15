// The test framework of tests/cpp: about a screen of code instead of a dependency.
//
//   TEST(a_grant_past_its_lease_frees_its_blocks) {
//     CHECK(pool.num_free() == 4);         // goes on after a failure
//     CHECK_EQ(pool.num_free(), 4);        // prints both sides
//     CHECK_THROWS(pool.release(812), std::out_of_range);
//     REQUIRE(grant.has_value());          // ends this test after a failure
//   }
//
// Each test runs by itself, in the order of its file; an exception that leaves it is a failure.
// Command line (main.cc): [FILTER ...] runs the tests whose "file.name" contains one of them;
// --list prints the names. Single-threaded: checks are made on the thread that runs the test.
#pragma once

#include <concepts>
#include <cstdint>
#include <exception>
#include <functional>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace rtp_llm::testing {

struct Test {
  const char* file;
  const char* name;
  void (*run)();
};

// All tests of this binary, in order of registration.
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline bool add_test(const char* file, const char* name, void (*run)()) {
  tests().push_back({file, name, run});
  return true;
}

// Ends the running test; the failure has been reported.
struct Abandon {};

// Notes a failure of the running test and prints it to stderr. Defined in main.cc.
void report(const char* file, int line, const std::string& what);

template <typename T>
std::string show(const T& value) {
  std::ostringstream out;
  out.precision(17);
  out << std::boolalpha;
  if constexpr (std::is_enum_v<T>) {
    out << +static_cast<std::underlying_type_t<T>>(value);
  } else if constexpr (std::same_as<T, std::int8_t> || std::same_as<T, std::uint8_t>) {
    out << +value;
  } else if constexpr (requires { out << value; }) {
    out << value;
  } else if constexpr (requires { value.begin(), value.end(); }) {
    out << '[';
    const char* comma = "";
    for (const auto& item : value) {
      out << comma << show(item);
      comma = ", ";
    }
    out << ']';
  } else if constexpr (requires { value.has_value(), *value; }) {
    out << (value.has_value() ? show(*value) : "nullopt");
  } else if constexpr (requires { value.first, value.second; }) {
    out << '(' << show(value.first) << ", " << show(value.second) << ')';
  } else {
    out << '<' << sizeof(T) << " bytes>";
  }
  return out.str();
}

// Compares by value, also between signed and unsigned integers.
template <typename A, typename B>
bool equal(const A& a, const B& b) {
  constexpr bool integers = std::integral<A> && std::integral<B> && !std::same_as<A, bool> && !std::same_as<B, bool> &&
                            !std::same_as<A, char> && !std::same_as<B, char>;
  if constexpr (integers) {
    return std::cmp_equal(a, b);
  } else {
    return a == b;
  }
}

template <typename A, typename B>
bool check_equal(const A& a, const B& b, const char* text, const char* file, int line) {
  if (equal(a, b)) return true;
  report(file, line, std::string(text) + "\n    left:  " + show(a) + "\n    right: " + show(b));
  return false;
}

}  // namespace rtp_llm::testing

#define TEST(name)                                                 \
  static void test_##name();                                       \
  [[maybe_unused]] static const bool test_##name##_added =         \
      ::rtp_llm::testing::add_test(__FILE__, #name, &test_##name); \
  static void test_##name()

#define CHECK(...)                                                               \
  do {                                                                           \
    if (!static_cast<bool>(__VA_ARGS__)) {                                       \
      ::rtp_llm::testing::report(__FILE__, __LINE__, "CHECK(" #__VA_ARGS__ ")"); \
    }                                                                            \
  } while (false)

#define CHECK_EQ(a, ...) \
  (void)::rtp_llm::testing::check_equal((a), (__VA_ARGS__), "CHECK_EQ(" #a ", " #__VA_ARGS__ ")", __FILE__, __LINE__)

// |a − b| ≤ tolerance; a NaN fails.
#define CHECK_NEAR(a, b, tolerance)                                                                     \
  do {                                                                                                  \
    const double left_ = static_cast<double>(a), right_ = static_cast<double>(b);                       \
    const double apart_ = left_ < right_ ? right_ - left_ : left_ - right_;                             \
    if (!(apart_ <= static_cast<double>(tolerance))) {                                                  \
      ::rtp_llm::testing::report(                                                                       \
          __FILE__, __LINE__,                                                                           \
          "CHECK_NEAR(" #a ", " #b ", " #tolerance ")\n    left:  " + ::rtp_llm::testing::show(left_) + \
              "\n    right: " + ::rtp_llm::testing::show(right_));                                      \
    }                                                                                                   \
  } while (false)

#define CHECK_THROWS(expression, exception)                                                            \
  do {                                                                                                 \
    bool thrown_ = false;                                                                              \
    try {                                                                                              \
      (void)(expression);                                                                              \
    } catch (const exception&) {                                                                       \
      thrown_ = true;                                                                                  \
    }                                                                                                  \
    if (!thrown_) {                                                                                    \
      ::rtp_llm::testing::report(__FILE__, __LINE__,                                                   \
                                 "CHECK_THROWS(" #expression ", " #exception "): nothing was thrown"); \
    }                                                                                                  \
  } while (false)

// As CHECK_THROWS, and the message must contain `text`.
#define CHECK_THROWS_WITH(expression, exception, text)                                               \
  do {                                                                                               \
    std::string message_ = "nothing was thrown";                                                     \
    bool thrown_ = false;                                                                            \
    try {                                                                                            \
      (void)(expression);                                                                            \
    } catch (const exception& error_) {                                                              \
      thrown_ = true;                                                                                \
      message_ = error_.what();                                                                      \
    }                                                                                                \
    if (!thrown_ || message_.find(text) == std::string::npos) {                                      \
      ::rtp_llm::testing::report(__FILE__, __LINE__,                                                 \
                                 "CHECK_THROWS_WITH(" #expression ", " #exception "): " + message_); \
    }                                                                                                \
  } while (false)

#define REQUIRE(...)                                                               \
  do {                                                                             \
    if (!static_cast<bool>(__VA_ARGS__)) {                                         \
      ::rtp_llm::testing::report(__FILE__, __LINE__, "REQUIRE(" #__VA_ARGS__ ")"); \
      throw ::rtp_llm::testing::Abandon{};                                         \
    }                                                                              \
  } while (false)
