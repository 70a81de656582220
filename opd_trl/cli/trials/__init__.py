"""The trials of `opd-trl preflight`: which runs are tried, how what came out is shown, and the job of one of them."""
