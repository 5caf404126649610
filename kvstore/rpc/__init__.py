"""What every gRPC border shares: the protocol version, the table of status codes, channels with deadlines."""

PROTOCOL_VERSION = 1
