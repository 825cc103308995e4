# Debian packages that `make profile` needs besides packages.debian; it installs what is missing.
llvm-19                  # llvm-profdata: merges what the counting proxies have written
