//! Money: wallets, rights, shares, movements, cases, postings, habits.
