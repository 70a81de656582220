"""What `opd-trl report` does: from the run logs of training runs to one HTML page, without torch."""
