/*
 * Who may speak: a model of migration/arbiter-witness.c and decide.c for spin.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two protected sides, one newcomer that would start the guest anew, one key at the
 * witness. Requests and answers get lost, anybody pauses at any point (that is what
 * interleaving is), sides die, keys with a lease expire. Assumed, as in the code: a lease
 * ends at the witness only after its owner's gate has shut by itself.
 *
 * While protected, P speaks by a permit of the heartbeat (migration/heartbeat-state.h): its
 * beats and S's echoes get lost, overtake each other, come late and twice; each carries the
 * age of P's beat, in ticks of a clock that runs when it likes between any two steps. S
 * stops to echo, and asks the witness WAIT ticks after the newest beat that it ever echoed,
 * or once P has said that its gate is shut.
 *
 * Checked: never two voices (assert); a surviving side gets to speak once the witness can
 * be reached for good (ltl); nobody is stuck (no invalid end state).
 */
#define P 0
#define S 1
#define N 2

mtype = { ABSENT, ALONE, PROTECTED, FENCED, LOST, DEAD };

mtype key = PROTECTED;
byte revision = 1;
byte owner = P;
byte last = N + 1;      /* KEY/last: whose "alone" was the last in this generation or after */

mtype state[3] = { PROTECTED, PROTECTED, LOST };
bool vouching = true;   /* the SVM echoes the PVM's beats */
#define LEASE 2         /* ticks: of the permit, from the sending of the beat */
#define WAIT 3          /* ticks: of S, from hearing it */
#define NONE 4          /* no beat; one that old proves nothing to anybody */
byte permit = 0;        /* ticks that P may still speak while protected */
byte heard = NONE;      /* ticks since S heard the newest beat that it echoes */
byte echoed = NONE;     /* the age of that beat */
byte beat = NONE;       /* the age of one under way, which may arrive many times, or never */
byte echo = NONE;       /* the age of the beat that an echo under way tells of */
bool shut = false;    /* P has said that its gate is shut; S hears it at any time later */
bool lease[3];          /* asked for, and not over as its owner counts, from the asking */
bool gate[3];           /* what the owner lets its guest's frames pass by */
bool lossy = true;      /* requests and answers may be lost */

/* What is known P says without asking S, as long as its permit lasts. */
#define speaks_p ((state[P] == PROTECTED && permit > 0) || (state[P] == ALONE && gate[P]))
#define speaks_s (state[S] == ALONE && gate[S])
#define speaks_n (state[N] == ALONE && gate[N])
#define BOUND 6         /* revisions: enough for each side to win, expire and return */

/* A swap of @from against "alone, me", answered or not. */
inline swap(me, from, absent)
{
    lease[me] = true;
    atomic {
        won = false; lost = false;
        if
        :: lossy -> skip                                  /* the request is lost */
        :: true ->
            if
            :: (absent && key == ABSENT) || (!absent && key == PROTECTED && revision == from) ->
                key = ALONE; owner = me; last = me; revision++; won = true
            :: (!absent && key == ABSENT && last == me && revision < BOUND) ->
                key = ALONE; owner = me; revision++; won = true    /* a win not heard of */
            :: else ->
                if
                :: key == ALONE && owner == me -> won = true  /* ours of before */
                :: else -> lost = true
                fi
            fi;
            if
            :: lossy -> won = false; lost = false         /* the answer is lost */
            :: true -> skip
            fi
        fi
    }
}

/* The owner's life: renewal, the gate's own clock, the way back after an expiry. */
inline serve(me)
{
    do
    :: state[me] == ALONE ->
        if
        :: atomic { key == ALONE && owner == me -> lease[me] = true };  /* keepalive */
            atomic { gate[me] = lease[me] }                             /* its answer */
        :: atomic { key == ABSENT && revision < BOUND -> gate[me] = false };
            swap(me, 0, true);
            if
            :: atomic { won -> gate[me] = lease[me] }
            :: lost -> state[me] = FENCED; gate[me] = false
            :: else -> skip
            fi
        :: atomic { key == ALONE && owner != me -> state[me] = FENCED; gate[me] = false }
        :: atomic { key == ABSENT && revision >= BOUND -> break }
        fi
    :: else -> break
    od
}

proctype Side(byte me)
{
    byte mine = 1;
    bool won, lost;

    if  /* protection ends here at any time: a cut link, a word, the peer's death */
    :: me == S -> atomic { vouching = false; echoed = NONE; beat = NONE }
    :: else -> skip
    fi;
    if
    :: me == P -> atomic { state[P] = LOST; shut = true;  /* its gate has shut before */
                           permit = 0; echo = NONE; beat = NONE; echoed = NONE }
    :: else -> state[S] = LOST; atomic { heard >= WAIT || shut -> heard = NONE }
    fi;
    do
    :: state[me] == LOST ->
        swap(me, mine, false);
        if
        :: won -> atomic { state[me] = ALONE; gate[me] = lease[me] }
        :: lost -> state[me] = FENCED
        :: else -> skip
        fi
    :: else -> break
    od;
    serve(me)
}

proctype Newcomer()
{
    bool won, lost;

    swap(N, 0, true);
    if
    :: won -> atomic { state[N] = ALONE; gate[N] = lease[N] }
    :: else -> state[N] = FENCED    /* refused to start */
    fi;
    serve(N)
}

/* P's beats. One is sent at any time; it takes the place of the one under way, or is lost. */
proctype Beats()
{
end:
    do
    :: atomic { state[P] == PROTECTED && vouching && beat != 0 -> beat = 0 }
    :: atomic { state[P] == PROTECTED && echo < LEASE && LEASE - echo > permit ->
                permit = LEASE - echo }    /* an echo comes; it may come again */
    od
}

/* S hears and echoes, until it stops to vouch. */
proctype Echoes()
{
end:
    do
    :: atomic { vouching && beat < echoed -> echoed = beat; heard = 0 }
    :: atomic { vouching && echoed < NONE && echo != echoed -> echo = echoed }
    od
}

inline older(age)
{
    if
    :: age < NONE -> age++
    :: else -> skip
    fi
}

/* One clock for both: that theirs differ in rate is what WAIT is longer than LEASE for. */
proctype Ticks()
{
end:
    do
    :: atomic { permit > 0 || heard < NONE || echo < NONE || beat < NONE ->
                if
                :: permit > 0 -> permit--
                :: else -> skip
                fi;
                older(heard); older(echoed); older(beat); older(echo) }
    od
}

/* Time passes: a lease and the gate that goes by it end together. */
proctype Clock()
{
end:
    do
    :: atomic { lease[P] -> lease[P] = false; gate[P] = false }
    :: atomic { lease[S] -> lease[S] = false; gate[S] = false }
    :: atomic { lease[N] -> lease[N] = false; gate[N] = false }
    od
}

/* A lease that is not renewed ends. */
proctype Expiry()
{
end:
    do
    :: atomic { key == ALONE && !lease[owner] && revision < BOUND -> key = ABSENT }
    od
}

/* The witness gets reachable for good at some time. */
proctype Repair()
{
    lossy = false
}

proctype Monitor()
{
end:
    do
    :: atomic { (speaks_p && speaks_s) || (speaks_p && speaks_n) || (speaks_s && speaks_n) ->
                assert(false) }
    od
}

init {
    atomic { run Side(P); run Side(S); run Newcomer(); run Expiry(); run Repair(); run Clock();
             run Beats(); run Echoes(); run Ticks(); run Monitor() }
}

/* No takeover is lost: in the end the key has an owner, or the run has used up its
 * revisions. */
ltl decided { <> (key != PROTECTED || revision >= BOUND) }
