"""Methods of other papers that Streaming Token Compression is compared with."""
