//! Linux's texts, printed from a state region: used by the host's views and by the guest's own reports.
