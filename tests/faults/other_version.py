"""Runs `kvstore …` as a release that speaks another protocol: python other_version.py python -m kvstore node …"""

import sys

import kvstore.rpc

VERSION = 99

if __name__ == "__main__":
    kvstore.rpc.PROTOCOL_VERSION = VERSION  # before any module copies it
    from kvstore.cli.main import main

    sys.argv = ["kvstore", *sys.argv[4:]]
    sys.exit(main())
