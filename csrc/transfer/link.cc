#include "transfer/link.h"

namespace rtp_llm {

std::vector<ucp_dt_iov_t> to_iov(const std::vector<Piece>& pieces) {
  std::vector<ucp_dt_iov_t> iov;
  iov.reserve(pieces.size());
  for (const Piece& piece : pieces) {
    if (!iov.empty() && static_cast<char*>(iov.back().buffer) + iov.back().length == piece.data)
      iov.back().length += piece.bytes;
    else
      iov.push_back({piece.data, piece.bytes});
  }
  return iov;
}

uint64_t total_bytes(const std::vector<Piece>& pieces) {
  uint64_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.bytes;
  return bytes;
}

const void* describe(const std::vector<ucp_dt_iov_t>& iov, ucp_request_param_t& params, size_t& count) {
  params.op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
  if (iov.size() == 1) {
    params.datatype = ucp_dt_make_contig(1);
    count = iov[0].length;
    return iov[0].buffer;
  }
  params.datatype = UCP_DATATYPE_IOV;
  count = iov.size();
  return iov.data();
}

}  // namespace rtp_llm
